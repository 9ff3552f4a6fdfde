"""Prompts that stand for a true mask, as SAM2's own training and evaluation derive them from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

VideoPrompt = Literal["mask", "box", "click", "3-click", "5-click"]
ImagePrompt = Literal["box", "click", "3-click", "5-click"]
CLICKS = {"click": 1, "3-click": 3, "5-click": 5}


def check_prompt(prompt: str, kind: object) -> None:
    """Check the name of a prompt.

    Args:
        prompt: The name.
        kind: :data:`VideoPrompt` or :data:`ImagePrompt`.

    Raises:
        DataError: It is unknown.
    """
    if prompt not in get_args(kind):
        raise DataError(f"prompt must be one of {', '.join(get_args(kind))}, got {prompt!r}")


def prompt_object(
    predictor: SAM2VideoPredictor,
    state: dict[str, Any],
    frame: int,
    object_id: int,
    mask: NDArray[np.bool_],
    prompt: VideoPrompt,
) -> None:
    """Tell a video predictor of an object.

    Args:
        predictor: SAM2's video predictor.
        state: Its inference state.
        frame: Index of the frame.
        object_id: The object.
        mask: bool ``[height, width]``, its true mask.
        prompt: "mask"; "box", its bounding box; "click", its innermost point; "3-click" or "5-click", where each
            further one is the innermost point of the largest error of the answer so far.

    Example:
        >>> prompt_object(predictor, state, 0, 1, mask, "3-click")  # doctest: +SKIP
    """
    from sam2.modeling.sam2_utils import get_next_point
    from sam2.utils.misc import mask_to_box

    truth = torch.from_numpy(np.asarray(mask))
    if prompt == "mask":
        predictor.add_new_mask(state, frame, object_id, truth)
        return
    truth = truth[None, None]
    if prompt == "box":
        box = mask_to_box(truth)[0, 0].float()
        predictor.add_new_points_or_box(state, frame, object_id, box=box)
        return
    answer = None
    for click in range(CLICKS[prompt]):
        point, label = get_next_point(truth, answer, "center")
        _, ids, logits = predictor.add_new_points_or_box(
            state, frame, object_id, points=point[0], labels=label[0], clear_old_points=click == 0
        )
        answer = (logits[list(ids).index(object_id)] > 0).cpu()[None]
