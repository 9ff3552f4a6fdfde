"""SAM2's video predictor without its own progress bars, for callers that show theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sam2 import sam2_video_predictor

from .rebind import rebound


def _no_bar(iterable: Iterable[Any], **_: Any) -> Iterable[Any]:
    return iterable


@torch.inference_mode()
def propagate_quietly(predictor: Any, state: dict[str, Any], **arguments: Any) -> Iterator[Any]:
    """What ``predictor.propagate_in_video`` yields, without the bar that it prints.

    Args:
        predictor: A ``SAM2VideoPredictor``.
        state: Its inference state.
        **arguments: As ``propagate_in_video`` takes them.

    Yields:
        Index of the frame, object ids, and mask logits ``[objects, 1, height, width]``.

    Example:
        >>> for frame, object_ids, logits in propagate_quietly(predictor, state):  # doctest: +SKIP
        ...     masks = logits > 0
    """
    method = type(predictor).propagate_in_video
    # A subclass's own loop has no bar, or one that is wanted.
    if method is sam2_video_predictor.SAM2VideoPredictor.propagate_in_video:
        method = rebound(method, tqdm=_no_bar)
    yield from method(predictor, state, **arguments)
