"""SAM2's video predictor without its own progress bars, for callers that show theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from sam2 import sam2_video_predictor
from torch import Tensor

from .rebind import rebound

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

Item = TypeVar("Item")


def _no_bar(iterable: Iterable[Item], **_: object) -> Iterable[Item]:
    return iterable


@torch.inference_mode()
def propagate_quietly(
    predictor: SAM2VideoPredictor, state: dict[str, Any], **arguments: Any
) -> Iterator[tuple[int, list[int], Tensor]]:
    """What ``predictor.propagate_in_video`` yields, without the bar that it prints.

    Args:
        predictor: A ``SAM2VideoPredictor``.
        state: Its inference state.
        **arguments: As ``propagate_in_video`` takes them.

    Yields:
        Index of the frame, object ids, and mask logits ``[objects, 1, height, width]``.

    Example:
        >>> state = predictor_state(predictor, frames)
        >>> prompted = predictor.add_new_mask(state, 0, obj_id=1, mask=mask)
        >>> for frame, object_ids, logits in propagate_quietly(predictor, state):
        ...     masks = logits > 0
    """
    method = type(predictor).propagate_in_video
    # A subclass's own loop has no bar, or one that is wanted.
    if method is sam2_video_predictor.SAM2VideoPredictor.propagate_in_video:
        method = rebound(method, tqdm=_no_bar)
    yield from method(predictor, state, **arguments)


@torch.inference_mode()
def propagate_one(
    predictor: SAM2VideoPredictor, state: dict[str, Any], frame: int, reverse: bool = False
) -> tuple[int, list[int], Tensor]:
    """What ``predictor.propagate_in_video`` yields for one frame.

    Args:
        predictor: A ``SAM2VideoPredictor``.
        state: Its inference state; the frames before ``frame`` (after it, if ``reverse``) have been tracked.
        frame: Index of the frame.
        reverse: Whether tracking goes back in time.

    Returns:
        Index of the frame, object ids, and mask logits ``[objects, 1, height, width]``.

    Example:
        >>> frame, object_ids, logits = propagate_one(predictor, state, 1)  # doctest: +SKIP
    """
    method, sam2s = type(predictor).propagate_in_video, sam2_video_predictor.SAM2VideoPredictor.propagate_in_video
    if method is sam2s or (reverse and frame == 0):
        # Its loop runs over what the bar hands on. By its own count, it never goes back to frame 0 alone.
        method = rebound(sam2s, tqdm=lambda *_, **__: (frame,))
    return next(iter(method(predictor, state, start_frame_idx=frame, max_frame_num_to_track=0, reverse=reverse)))
