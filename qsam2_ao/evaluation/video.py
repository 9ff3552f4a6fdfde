"""J&F of videos, tracked by SAM2's own video predictor from a prompt for each object."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..compat.quiet import propagate_quietly
from ..data.types import VideoSequence
from ..errors import DataError
from ..optional import needed
from ..predictors import as_video_predictor, eval_mode, predictor_state
from ..progress import tqdm
from ..threads import one_thread_if_small
from .jf import JFScores, ObjectScore, check_lengths, score_sequence

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

VideoPrompt = Literal["mask", "box", "click"]


@dataclass(frozen=True)
class VideoScores:
    """J&F of a set of videos.

    Attributes:
        prompt: "mask", "box" or "click".
        scores: Those of every object.
        num_videos: How many videos.
        num_frames: How many frames in them.
        seconds: How long tracking took.
    """

    prompt: str
    scores: JFScores
    num_videos: int
    num_frames: int
    seconds: float

    @property
    def j(self) -> float:
        """Mean J over all objects, in percent."""
        return self.scores.j

    @property
    def f(self) -> float:
        """Mean F over all objects, in percent."""
        return self.scores.f

    @property
    def jf(self) -> float:
        """J&F, in percent."""
        return self.scores.jf

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "prompt": self.prompt,
            **self.scores.to_dict(),
            "num_videos": self.num_videos,
            "num_frames": self.num_frames,
            "seconds": self.seconds,
        }


def track_sequence(
    predictor: SAM2VideoPredictor, sequence: VideoSequence, prompt: VideoPrompt = "mask"
) -> NDArray[np.uint8]:
    """Track every object of a sequence forwards from the first frame that shows it.

    Args:
        predictor: SAM2's video predictor, in eval mode.
        sequence: The video; of its masks only those of the frames prompted are looked at.
        prompt: "mask" (the true mask), "box" (its bounding box) or "click" (its innermost point).

    Returns:
        uint8 ``[frames, height, width]`` of object ids. Where objects overlap, the one with the highest score
        wins; before an object's prompt there is none of it.

    Raises:
        DataError: The prompt's name is unknown, or an object is in no mask.

    Example:
        >>> masks = track_sequence(predictor, sequence)
    """
    if prompt not in get_args(VideoPrompt):
        raise DataError(f"prompt must be one of {', '.join(get_args(VideoPrompt))}, got {prompt!r}")
    starts = _first_frames(sequence)
    state = predictor_state(predictor, sequence.frames)
    shape = len(sequence.frames), *np.shape(sequence.frames[0])[:2]
    ids, best = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    # Objects that appear together are tracked together; later ones must not see the frames before.
    for start, object_ids in sorted(starts.items()):
        predictor.reset_state(state)
        for object_id in object_ids:
            mask = torch.from_numpy(np.asarray(sequence.masks[start]) == object_id)
            _add_prompt(predictor, state, start, object_id, mask, prompt)
        for t, tracked, logits in propagate_quietly(predictor, state, start_frame_idx=start):
            for object_id, scores in zip(tracked, logits[:, 0].float().cpu().numpy(), strict=True):
                wins = scores > best[t]
                ids[t][wins], best[t][wins] = object_id, scores[wins]
    return ids


def _first_frames(sequence: VideoSequence) -> dict[int, list[int]]:
    """The frame on which objects are prompted -> those objects."""
    starts: defaultdict[int, list[int]] = defaultdict(list)
    missing = list(sequence.object_ids)
    for t in range(len(sequence.frames)):
        if not missing:
            break
        mask = sequence.masks[t]
        if mask is not None:
            visible = set(np.unique(mask).tolist())
            starts[t] += [i for i in missing if i in visible]
            missing = [i for i in missing if i not in visible]
    if missing:
        raise DataError(f"{sequence.name}: no mask shows object {missing[0]}, so it cannot be prompted")
    return {t: objects for t, objects in starts.items() if objects}


def _add_prompt(
    predictor: Any, state: dict[str, Any], frame: int, object_id: int, mask: torch.Tensor, prompt: VideoPrompt
) -> None:
    from sam2.modeling.sam2_utils import get_next_point
    from sam2.utils.misc import mask_to_box

    if prompt == "mask":
        predictor.add_new_mask(state, frame, object_id, mask)
    elif prompt == "box":
        box = mask_to_box(mask[None, None])[0, 0].float()
        predictor.add_new_points_or_box(state, frame, object_id, box=box)
    else:
        point, label = get_next_point(mask[None, None], None, "center")
        predictor.add_new_points_or_box(state, frame, object_id, points=point[0], labels=label[0])


def check_sequences(sequences: Iterable[VideoSequence], *, skip_first_and_last: bool = True) -> None:
    """Say before hours of tracking which sequences cannot be scored.

    Args:
        sequences: Videos with masks, each of which is read once.
        skip_first_and_last: As for :func:`evaluate_video`.

    Raises:
        DataError: A sequence has too few annotated frames, or none with an object; all such are named.
        MissingPackageError: vos-benchmark is not installed.
    """
    needed("vos_benchmark")
    sequences = list(sequences)
    check_lengths({s.name: s.masks for s in sequences}, skip_first_and_last=skip_first_and_last)
    if empty := [sequence.name for sequence in sequences if not sequence.object_ids]:
        raise DataError(f"no mask shows an object in {', '.join(empty)}; leave out these sequences")
    for sequence in sequences:
        _first_frames(sequence)


def evaluate_video(
    model: nn.Module,
    sequences: Iterable[VideoSequence],
    *,
    prompt: VideoPrompt = "mask",
    skip_first_and_last: bool = True,
    progress: bool = False,
) -> VideoScores:
    """Track every object of every video with SAM2's video predictor and score the masks.

    Args:
        model: A model of the SAM2Base family, float, prepared or quantized. Where it isn't a
            ``SAM2VideoPredictor``, one that shares its parts is used. Its mode is restored afterwards.
        sequences: Videos with masks: procedural ones, those of ``read_davis``, or any
            :class:`~qsam2_ao.data.types.VideoSequence`.
        prompt: "mask", "box" or "click", given on the first frame that shows the object.
        skip_first_and_last: Leave the first and the last annotated frame out of the scores, as DAVIS does.
        progress: Show a progress bar.

    Returns:
        The scores, the same on every run.

    Raises:
        DataError: There are no sequences, or one cannot be used; the message names it. Of a list it is said before
            the first is tracked.

    Example:
        >>> jf = evaluate_video(model, sequences).jf
    """
    objects: list[ObjectScore] = []
    videos = frames = 0
    seconds = 0.0
    predictor = as_video_predictor(model)
    if isinstance(sequences, Sequence):
        check_sequences(sequences, skip_first_and_last=skip_first_and_last)
    with eval_mode(predictor), one_thread_if_small(predictor):
        for sequence in tqdm(sequences, desc=f"videos, {prompt}", unit="video", disable=not progress):
            check_lengths({sequence.name: sequence.masks}, skip_first_and_last=skip_first_and_last)
            started = time.perf_counter()
            predicted = track_sequence(predictor, sequence, prompt)
            seconds += time.perf_counter() - started
            objects += score_sequence(
                sequence.name,
                predicted,
                sequence.masks,
                object_ids=sequence.object_ids,
                skip_first_and_last=skip_first_and_last,
            )
            videos, frames = videos + 1, frames + len(sequence.frames)
    if not videos:
        raise DataError("there are no sequences to evaluate")
    return VideoScores(prompt, JFScores(tuple(objects), skip_first_and_last), videos, frames, seconds)
