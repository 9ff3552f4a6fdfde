"""The rules for clicks, boxes and masks as arrays: those of SAM2's predictors, checked for every way in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError

#: What SAM2's prompt encoder knows: padding, outside, inside, and the corners of a box.
LABELS = (-1, 0, 1, 2, 3)
_PADDING = -1
Names: TypeAlias = tuple[str, str, str, str]
PREDICTOR_NAMES: Names = ("point_coords", "point_labels", "box", "mask_input")
OBJECT_NAMES: Names = ("points", "labels", "box", "mask")
"""Of one object's, in videos."""


@dataclass(frozen=True)
class PromptArrays:
    """Prompts of ``B`` objects that have passed every check.

    Attributes:
        points: float32 ``[B, N, 2]`` in pixels, or None.
        labels: int32 ``[B, N]``, or None.
        boxes: float32 ``[B, 4]``, or None.
        masks: Logits, float32 ``[B or 1, 1, H, W]``, or None.
        batch: B.
    """

    points: NDArray[np.float32] | None
    labels: NDArray[np.int32] | None
    boxes: NDArray[np.float32] | None
    masks: NDArray[np.float32] | None
    batch: int

    def clicks(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Coordinates ``[B, M, 2]`` and labels ``[B, M]``, a box as clicks on its corners in front."""
        coords = [np.zeros((self.batch, 0, 2), np.float32)]
        labels = [np.zeros((self.batch, 0), np.int32)]
        if self.boxes is not None:
            coords.append(self.boxes.reshape(-1, 2, 2))
            labels.append(np.tile(np.array([2, 3], np.int32), (self.batch, 1)))
        if self.points is not None and self.labels is not None:
            coords.append(self.points)
            labels.append(self.labels)
        return np.concatenate(coords, 1), np.concatenate(labels, 1)


def check_prompts(
    size: Sequence[int],
    points: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    box: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    mask_size: int | None = None,
    names: Names = PREDICTOR_NAMES,
    where: str = "",
) -> PromptArrays:
    """Check the prompts of one or several objects against each other and against the picture.

    Args:
        size: Width and height of the picture in pixels.
        points: ``[N, 2]``, or ``[B, N, 2]`` for B objects: x and y in pixels, from 0 to the width and height.
        labels: ``[N]`` or ``[B, N]``: 1 inside, 0 outside, -1 padding, which may lie anywhere; 2 and 3 are the corners
            of a box.
        box: ``[4]`` or ``[B, 4]``: left, top, right and bottom in pixels.
        mask: Logits of an earlier prediction, ``[1, S, S]`` or ``[B, 1, S, S]``.
        mask_size: S; None takes no masks.
        names: What the caller calls the four, for errors.
        where: What errors start with, such as ``"prompts.json, item 3: "``.

    Returns:
        The arrays, with a dimension for the objects.

    Raises:
        DataError: An array has a wrong shape or type, is not finite, or doesn't fit the others; a label is unknown; a
            point or box lies outside of the picture; a box has no area; or there is no prompt. The message names the
            argument, its shape and what is wanted.

    Example:
        >>> check_prompts((640, 480), [[320, 240]], [1]).points.shape
        (1, 1, 2)
    """
    n_points, n_labels, n_box, n_mask = (where + name for name in names)
    batches: dict[str, int] = {}
    xy = kinds = boxes = masks = None
    if points is None and labels is not None:
        raise DataError(f"{n_labels} has no points: give {names[0]} with one point per label, [N, 2] or [B, N, 2]")
    if points is not None:
        wanted = "[N, 2] (x and y in pixels), or [B, N, 2] for B objects"
        xy = _numbers(n_points, points, wanted)
        if xy.ndim not in (2, 3) or xy.shape[-1] != 2:
            turned = "; it looks transposed" if xy.ndim == 2 and xy.shape[0] == 2 else ""
            raise DataError(f"{n_points} has shape {list(xy.shape)}, wanted {wanted}{turned}")
        if labels is None:
            raise DataError(f"{n_points} has no labels: give {names[1]}, {list(xy.shape[:-1])}, 1 inside and 0 outside")
        kinds = _numbers(n_labels, labels, f"{list(xy.shape[:-1])}, one label per point")
        if kinds.shape != xy.shape[:-1]:
            raise DataError(
                f"{n_labels} has shape {list(kinds.shape)}, wanted {list(xy.shape[:-1])}: one label for each point of "
                f"{names[0]} {list(xy.shape)}"
            )
        if unknown := sorted(set(np.unique(kinds).tolist()) - set(LABELS)):
            raise DataError(
                f"{n_labels} holds {unknown[0]:g}; labels are 1 (inside), 0 (outside), -1 (padding), 2 and 3 (corners "
                "of a box)"
            )
        xy, kinds = (a[None] if xy.ndim == 2 else a for a in (xy, kinds))
        batches[n_points] = len(xy)
        _check_inside(n_points, xy[kinds != _PADDING], size)
    if box is not None:
        wanted = "[4] (left, top, right, bottom in pixels), or [B, 4] for B objects"
        boxes = _numbers(n_box, box, wanted)
        if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4:
            raise DataError(f"{n_box} has shape {list(boxes.shape)}, wanted {wanted}")
        boxes = boxes.reshape(-1, 4)
        batches[n_box] = len(boxes)
        for x0, y0, x1, y1 in boxes.tolist():
            if x0 >= x1 or y0 >= y1:
                raise DataError(
                    f"{n_box} [{x0:g}, {y0:g}, {x1:g}, {y1:g}] has no area; wanted left, top, right, bottom with "
                    "left < right and top < bottom"
                )
        _check_inside(n_box, boxes.reshape(-1, 2), size)
    if mask is not None:
        masks = _mask_logits(n_mask, mask, mask_size)
        if len(masks) > 1:
            batches[n_mask] = len(masks)
    if not batches and masks is None:
        raise DataError(f"{where}there is no prompt: give {names[0]} with {names[1]}, or {names[2]}")
    batch = next(iter(batches.values()), 1)
    if any(count != batch for count in batches.values()):
        counts = ", ".join(f"{name} of {count}" for name, count in batches.items())
        raise DataError(f"the prompts are for different numbers of objects ({counts}); give each the same B")
    if batch == 0 or (xy is not None and not xy.shape[1] and boxes is None and masks is None):
        raise DataError(f"{n_points if points is not None else n_box} is empty; wanted at least one point or box")
    return PromptArrays(
        None if xy is None else xy.astype(np.float32),
        None if kinds is None else kinds.astype(np.int32),
        None if boxes is None else boxes.astype(np.float32),
        masks,
        batch,
    )


def check_object_prompt(
    size: Sequence[int],
    points: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    box: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    where: str = "",
) -> PromptArrays | NDArray[np.bool_]:
    """Check what says where one object is on a frame: clicks and a box, or a mask.

    Args:
        size: Width and height of the frame in pixels.
        points: ``[N, 2]``, x and y in pixels.
        labels: ``[N]``, 1 inside and 0 outside.
        box: ``[4]``, left, top, right and bottom in pixels.
        mask: bool ``[height, width]``, instead of the others.
        where: What errors start with.

    Returns:
        The clicks and box, or the mask.

    Raises:
        DataError: It breaks the rules of :func:`check_prompts` or :func:`check_mask`, has a mask and more, or is for
            several objects.

    Example:
        >>> check_object_prompt((64, 48), box=[2, 3, 20, 30]).batch
        1
    """
    if mask is not None:
        if any(other is not None for other in (points, labels, box)):
            raise DataError(mask_and_more(where.removesuffix(": ") or "it"))
        return check_mask(size, mask, f"{where}mask")
    given = check_prompts(size, points, labels, box, names=OBJECT_NAMES, where=where)
    if given.batch != 1:
        raise DataError(f"{where}the prompt is for {given.batch} objects; give each its own id")
    return given


def mask_and_more(whose: str, frame: int = 0) -> str:
    """What is wrong where a mask is not the only prompt of an object on a frame."""
    on_frame = f" on frame {frame}" if frame else ""
    return f"{whose} has a mask and another prompt{on_frame}; give a mask, or points and a box"


def check_mask(size: Sequence[int], mask: ArrayLike, name: str = "mask") -> NDArray[np.bool_]:
    """Check an object's mask on a frame.

    Args:
        size: Width and height of the frame in pixels.
        mask: ``[height, width]``, bool, or numbers of which one is 0 and all others are equal.
        name: What the caller calls it, for errors.

    Returns:
        bool ``[height, width]``.

    Raises:
        DataError: It has another shape, or is soft or holds several objects.

    Example:
        >>> check_mask((2, 1), [[0, 255]])
        array([[False,  True]])
    """
    width, height = size
    array = _numbers(name, mask, f"[{height}, {width}] (height, width), bool")
    if array.shape != (height, width):
        raise DataError(
            f"{name} has shape {list(array.shape)}, wanted [{height}, {width}], the frame's height and width; resize "
            "it without smoothing"
        )
    found = array != 0
    if found.any() and len(np.unique(array[found])) > 1:
        raise DataError(f"{name} holds several values besides 0; wanted the mask of one object: compare it with its id")
    return found


def _numbers(name: str, value: ArrayLike, wanted: str) -> NDArray[np.float64]:
    if hasattr(value, "detach"):  # a tensor, which NumPy can't read from a GPU or while it has gradients
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{name} is no array of numbers ({error}); wanted {wanted}") from error
    if array.dtype.kind not in "buif":
        raise DataError(f"{name} is of type {array.dtype}, not numbers; wanted {wanted}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise DataError(f"{name} {list(array.shape)} has NaN or infinite values; wanted {wanted}, finite")
    return array


def _check_inside(name: str, points: NDArray[np.float64], size: Sequence[int]) -> None:
    outside = points[((points < 0) | (points > np.array(size[:2]))).any(-1)]
    if len(outside):
        x, y = outside[0].tolist()
        raise DataError(
            f"{name} has ({x:g}, {y:g}), outside of the picture, which is {size[0]} x {size[1]} pixels; give x from 0 "
            f"to {size[0]} and y from 0 to {size[1]}"
        )


def _mask_logits(name: str, mask: ArrayLike, side: int | None) -> NDArray[np.float32]:
    if side is None:
        raise DataError(f"{name} cannot be used here: this model takes clicks and boxes only")
    wanted = f"logits [1, {side}, {side}], or [B, 1, {side}, {side}] for B objects"
    logits = _numbers(name, mask, wanted)
    whole = logits[:, None] if logits.ndim == 3 and len(logits) == 1 else logits
    if whole.ndim != 4 or whole.shape[1:] != (1, side, side) or not len(whole):
        raise DataError(f"{name} has shape {list(logits.shape)}, wanted {wanted}")
    return whole.astype(np.float32)
