"""The objects of a video, tracked by SAM2's own video predictor from a prompt for each, frame by frame."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..compat.quiet import propagate_quietly
from ..data.types import Indexed, VideoSequence
from ..errors import DataError
from ..predictors import preprocess, state_of_images
from ..reporting.label_maps import label_map
from .prompts import VideoPrompt, check_prompt, prompt_object

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

#: Frame -> object -> its true mask, bool ``[height, width]``, where it is prompted.
Starts = dict[int, dict[int, NDArray[np.bool_]]]


def first_masks(sequence: VideoSequence) -> Starts:
    """Where each object is prompted: on the first frame that shows it.

    Args:
        sequence: The video; its masks are read until every object was seen.

    Returns:
        Frame -> object -> its mask there.

    Raises:
        DataError: An object is in no mask.
    """
    starts: Starts = {}
    missing = set(sequence.object_ids)
    for t in sequence.annotated:
        if not missing:
            break
        annotation = sequence.annotation(t)
        assert annotation is not None
        for object_id in sorted(missing & set(annotation.masks)):
            if (mask := np.asarray(annotation.masks[object_id])).any():
                starts.setdefault(t, {})[object_id] = mask
                missing.remove(object_id)
    if missing:
        raise DataError(f"{sequence.name}: no mask shows object {min(missing)}, so it cannot be prompted")
    return starts


def track_objects(
    predictor: SAM2VideoPredictor, frames: Indexed[NDArray[np.uint8]], starts: Starts, prompt: VideoPrompt = "mask"
) -> Iterator[tuple[int, dict[int, NDArray[np.float32]]]]:
    """Track every object forwards from its prompt, all at once.

    Each object is tracked as if it were alone, which SAM2 sees to, and those that appear later don't know the frames
    before. So the logits are those of SAM2's tools/vos_inference.py; where objects appear later, those of its
    ``--track_object_appearing_later_in_video``. Frames are read one by one.

    Args:
        predictor: SAM2's video predictor, in eval mode.
        frames: uint8 ``[height, width, 3]`` each, RGB, all of one size.
        starts: What :func:`first_masks` gives.
        prompt: How the masks are told, as for :func:`~qsam2_ao.evaluation.prompts.prompt_object`.

    Yields:
        Index of each frame, and object -> mask logits, float32 ``[height, width]``, of those prompted so far, by id.

    Raises:
        DataError: The prompt's name is unknown, or a frame has another type or size.

    Example:
        >>> for t, logits in track_objects(predictor, sequence.frames, first_masks(sequence)):
        ...     print(t, list(logits))
        0 [1, 2, 3, 4, 5]
        1 [1, 2, 3, 4, 5]
        2 [1, 2, 3, 4, 5]
    """
    check_prompt(prompt, VideoPrompt)
    images = _Preprocessed(frames, predictor.image_size)
    fresh = state_of_images(predictor, images, *images.shape[:2])
    states: list[tuple[dict[str, Any], Iterator[tuple[int, list[int], Tensor]]]] = []
    for t in range(len(frames)):
        if t in starts:
            # Empty containers, and the features of a frame that all states share.
            state = {name: copy.copy(value) for name, value in fresh.items() if name != "images"}
            state["images"] = images
            for object_id, mask in sorted(starts[t].items()):
                prompt_object(predictor, state, t, object_id, mask, prompt)
            states.append((state, propagate_quietly(predictor, state, start_frame_idx=t)))
        found: dict[int, NDArray[np.float32]] = {}
        features = states[-1][0]["cached_features"] if t in starts else None
        for state, tracked in states:
            if features is not None:
                state["cached_features"] = features
            _, ids, logits = next(tracked)
            features = state["cached_features"]
            found.update(zip(ids, logits[:, 0].float().cpu().numpy(), strict=True))
        yield t, dict(sorted(found.items()))


class _Preprocessed:
    """Frames as the network reads them, made when they are asked for."""

    def __init__(self, frames: Indexed[NDArray[np.uint8]], size: int) -> None:
        if len(frames) == 0:
            raise DataError("a video needs at least one frame")
        self._frames, self._size = frames, size
        self.shape = np.shape(frames[0])

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Tensor:
        frame = np.asarray(self._frames[index])
        if frame.shape != self.shape:
            raise DataError(f"frame {index} is {list(frame.shape)}, and the first was {list(self.shape)}")
        return preprocess([frame], self._size)[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))


@torch.inference_mode()
def track_sequence(
    predictor: SAM2VideoPredictor, sequence: VideoSequence, prompt: VideoPrompt = "mask"
) -> NDArray[np.uint8]:
    """Track every object of a sequence forwards from the first frame that shows it.

    Args:
        predictor: SAM2's video predictor, in eval mode.
        sequence: The video; of its masks only those of the frames prompted are looked at.
        prompt: "mask" (the true mask), "box" (its bounding box), "click" (its innermost point), "3-click" or "5-click"
            (each further one where the error is largest).

    Returns:
        uint8 ``[frames, height, width]`` of object ids. Where objects overlap, the one with the highest score
        wins; before an object's prompt there is none of it.

    Raises:
        DataError: The prompt's name is unknown, or an object is in no mask.

    Example:
        >>> masks = track_sequence(predictor, sequence)
    """
    check_prompt(prompt, VideoPrompt)
    ids = np.zeros((len(sequence.frames), *np.shape(sequence.frames[0])[:2]), np.uint8)
    for t, logits in track_objects(predictor, sequence.frames, first_masks(sequence), prompt):
        if logits:
            ids[t] = label_map(logits)
    return ids
