"""J&F of videos, tracked by SAM2's own video predictor from a prompt for each object."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..data.annotation import Annotation
from ..data.masks import VOID
from ..data.types import VideoSequence
from ..errors import DataError
from ..optional import needed
from ..predictors import as_video_predictor, eval_mode
from ..progress import tqdm
from ..reporting.label_maps import label_map
from ..threads import one_thread_if_small
from .jf import JFScores, check_lengths
from .prompts import VideoPrompt, check_prompt
from .protocol import Protocol, following
from .tally import Metric, ObjectScore, Tally, check_ignore, check_metric
from .tracking import first_masks, track_objects, track_sequence

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

__all__ = ["VideoPrompt", "VideoScores", "check_sequences", "evaluate_video", "score_video", "track_sequence"]

Found: TypeAlias = Callable[[int, dict[int, NDArray[np.bool_]]], None]
"""Takes the index of a frame and what was found on it: object -> bool ``[height, width]``."""


@dataclass(frozen=True)
class VideoScores:
    """J&F of a set of videos.

    Attributes:
        prompt: How the objects were told.
        scores: Those of every object.
        num_videos: How many videos.
        num_frames: How many frames in them.
        seconds: How long tracking and scoring took.
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


def score_video(
    predictor: SAM2VideoPredictor,
    sequence: VideoSequence,
    *,
    prompt: VideoPrompt = "mask",
    skip_first_and_last: bool = True,
    metric: Metric = "sav",
    ignore: int | None = None,
    found: Found | None = None,
) -> tuple[ObjectScore, ...]:
    """Track and score one video, frame by frame.

    Args:
        predictor: SAM2's video predictor, in eval mode.
        sequence: The video.
        prompt: As for :func:`evaluate_video`, as are the next three.
        skip_first_and_last: See there.
        metric: See there.
        ignore: See there.
        found: Called with the index of each frame and what was found on it: object -> bool ``[height, width]``. If the
            data set holds a map of ids for each frame, the masks don't overlap.

    Returns:
        A score for each object that counts; none of a video that has too few annotated frames.

    Raises:
        DataError: The video cannot be used; the message names it.

    Example:
        >>> score_video(predictor, sequence)[0].object_id
        1
    """
    tracked = track_masks(predictor, sequence, prompt)
    if found is not None:
        tracked = _told(tracked, found)
    return score_masks(sequence, tracked, skip_first_and_last=skip_first_and_last, metric=metric, ignore=ignore)


def track_masks(
    predictor: SAM2VideoPredictor, sequence: VideoSequence, prompt: VideoPrompt = "mask"
) -> Iterator[tuple[int, dict[int, NDArray[np.bool_]]]]:
    """Track every object of a video from the first frame that shows it.

    Args:
        predictor: SAM2's video predictor, in eval mode.
        sequence: The video.
        prompt: As for :func:`evaluate_video`.

    Yields:
        Index of each frame, and object -> bool ``[height, width]``. Where the data set holds a map of ids for each
        frame, the masks don't overlap: the object with the highest score wins.

    Raises:
        DataError: The video cannot be used; the message names it.
    """
    overlapping = getattr(sequence, "overlapping", False)
    for t, logits in track_objects(predictor, sequence.frames, first_masks(sequence), prompt):
        if overlapping or not logits:
            yield t, {object_id: values > 0 for object_id, values in logits.items()}
        else:
            numbers = label_map(dict(enumerate(logits.values(), 1)))
            yield t, {object_id: numbers == number for number, object_id in enumerate(logits, 1)}


def _told(
    tracked: Iterator[tuple[int, dict[int, NDArray[np.bool_]]]], found: Found
) -> Iterator[tuple[int, dict[int, NDArray[np.bool_]]]]:
    for t, masks in tracked:
        found(t, masks)
        yield t, masks


def score_masks(
    sequence: VideoSequence,
    tracked: Iterable[tuple[int, Mapping[int, NDArray[np.bool_]]]],
    *,
    skip_first_and_last: bool = True,
    metric: Metric = "sav",
    ignore: int | None = None,
) -> tuple[ObjectScore, ...]:
    """Score the masks of one video, which come frame by frame.

    Args:
        sequence: The video.
        tracked: Index of each frame, and object -> bool ``[height, width]``; an object without a mask is not there.
        skip_first_and_last: As for :func:`evaluate_video`, as are the next two. Of a data set with a file for each
            object, it is about the object's own annotations.
        metric: See there.
        ignore: See there.

    Returns:
        A score for each object that counts; none of a video that has too few annotated frames.

    Example:
        >>> truth = ((t, {1: sequence.masks[t] == 1}) for t in range(len(sequence)))
        >>> score_masks(sequence, truth)[0].jf
        100.0
    """
    check_ignore(ignore)
    overlapping = getattr(sequence, "overlapping", False)
    counted = _frames_that_count(sequence, skip_first_and_last)
    tally = Tally(sequence.name, _objects_that_count(sequence, metric, overlapping, ignore), metric)
    for t, masks in tracked:
        asked = [object_id for object_id in tally.object_ids if t in counted.get(object_id, counted[None])]
        annotation = sequence.annotation(t) if asked else None
        if annotation is None:
            continue
        left_out = _left_out(annotation, metric, ignore)
        nothing = np.zeros(annotation.size, bool)
        for object_id in asked:
            pair = masks.get(object_id, nothing), np.asarray(annotation.masks.get(object_id, nothing))
            tally.add(object_id, *(pair if left_out is None else (mask & ~left_out for mask in pair)))
    return tally.scores()


def _frames_that_count(sequence: VideoSequence, skip_first_and_last: bool) -> dict[int | None, set[int]]:
    """The frames of which an object's masks are known, and under None those of an object that is in no mask."""
    inner = slice(1, -1) if skip_first_and_last else slice(None)
    every = list(sequence.annotated)
    frames: dict[int | None, list[int]] = {object_id: [] for object_id in sequence.object_ids}
    for t in every:
        annotation = sequence.annotation(t)
        assert annotation is not None
        if annotation.complete:  # and then so are the others of the video
            frames = {}
            break
        for object_id in annotation.masks:
            frames.setdefault(object_id, []).append(t)
    return {None: set(every[inner]), **{object_id: set(found[inner]) for object_id, found in frames.items()}}


def _objects_that_count(sequence: VideoSequence, metric: Metric, overlapping: bool, ignore: int | None) -> set[int]:
    if metric == "sav":
        return {*sequence.object_ids} - {ignore}
    first = sequence.annotation(sequence.annotated[0])
    assert first is not None
    # A map of ids says that there is every object up to the largest.
    ids = set(first.masks) if overlapping else set(range(1, max(first.masks, default=0) + 1))
    return ids - {ignore}


def _left_out(annotation: Annotation, metric: Metric, ignore: int | None) -> NDArray[np.bool_] | None:
    """The pixels that don't count; None if all do."""
    if ignore is not None and ignore != VOID:
        return annotation.masks.get(ignore)
    return annotation.void if ignore == VOID or metric == "sav" else None


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
    check_lengths({s.name: len(s.annotated) for s in sequences}, skip_first_and_last=skip_first_and_last)
    if empty := [sequence.name for sequence in sequences if not sequence.object_ids]:
        raise DataError(f"no mask shows an object in {', '.join(empty)}; leave out these sequences")
    for sequence in sequences:
        first_masks(sequence)


def evaluate_video(
    model: nn.Module,
    sequences: Iterable[VideoSequence],
    *,
    prompt: VideoPrompt = "mask",
    skip_first_and_last: bool = True,
    protocol: Protocol = "deployed",
    metric: Metric = "sav",
    ignore: int | None = None,
    progress: bool = False,
) -> VideoScores:
    """Track every object of every video with SAM2's video predictor and score the masks.

    Args:
        model: A model of the SAM2Base family, float, prepared or quantized. Where it isn't a
            ``SAM2VideoPredictor``, one that shares its parts is used. Its mode is restored afterwards.
        sequences: Videos with masks: procedural ones, those of ``open_dataset``, or any
            :class:`~qsam2_ao.data.types.VideoSequence`.
        prompt: "mask", "box", "click", "3-click" or "5-click", given on the first frame that shows the object.
        skip_first_and_last: Leave the first and the last annotated frame out of the scores, as DAVIS does.
        protocol: How the predictor is set up, as :func:`~qsam2_ao.evaluation.protocol.following` says.
        metric: "davis" or "sav", as :mod:`qsam2_ao.evaluation.tally` explains.
        ignore: The annotation's label of pixels that don't count, such as 255. By default "davis" takes void as
            background, and "sav" leaves it out.
        progress: Show a progress bar.

    Returns:
        The scores, the same on every run.

    Raises:
        DataError: There are no sequences, or one cannot be used; the message names it. Of a list it is said before
            the first is tracked.

    Example:
        >>> jf = evaluate_video(model, sequences).jf
    """
    check_prompt(prompt, VideoPrompt)
    check_metric(metric)
    objects: list[ObjectScore] = []
    videos = frames = 0
    seconds = 0.0
    predictor = as_video_predictor(model)
    if isinstance(sequences, Sequence):
        check_sequences(sequences, skip_first_and_last=skip_first_and_last)
    with following(predictor, protocol), eval_mode(predictor), one_thread_if_small(predictor):
        for sequence in tqdm(sequences, desc=f"videos, {prompt}", unit="video", disable=not progress):
            check_lengths({sequence.name: len(sequence.annotated)}, skip_first_and_last=skip_first_and_last)
            started = time.perf_counter()
            objects += score_video(
                predictor,
                sequence,
                prompt=prompt,
                skip_first_and_last=skip_first_and_last,
                metric=metric,
                ignore=ignore,
            )
            seconds += time.perf_counter() - started
            videos, frames = videos + 1, frames + len(sequence.frames)
    if not videos:
        raise DataError("there are no sequences to evaluate")
    return VideoScores(prompt, JFScores(tuple(objects), skip_first_and_last), videos, frames, seconds)
