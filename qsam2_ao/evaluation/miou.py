"""Intersection over union of masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError


def mask_iou(predicted: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of each pair of masks.

    Args:
        predicted: bool ``[..., height, width]``.
        truth: bool of the same shape.

    Returns:
        float64 ``[...]`` from 0 to 1; two empty masks agree, so theirs is 1.

    Raises:
        DataError: The shapes differ, there are fewer than two dimensions, or the masks are not boolean.

    Example:
        >>> float(mask_iou([[True, True]], [[True, False]]))
        0.5
    """
    a, b = np.asarray(predicted), np.asarray(truth)
    if a.shape != b.shape or a.ndim < 2 or a.dtype != bool or b.dtype != bool:
        raise DataError(
            f"masks to compare must be bool [..., height, width] of one shape, got {a.dtype} {list(a.shape)} and "
            f"{b.dtype} {list(b.shape)}"
        )
    intersection = np.count_nonzero(a & b, axis=(-2, -1))
    union = np.count_nonzero(a | b, axis=(-2, -1))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def object_masks(ids: NDArray[np.uint8], object_ids: Sequence[int]) -> NDArray[np.bool_]:
    """One mask per object.

    Args:
        ids: uint8 ``[height, width]`` of object ids.
        object_ids: The ids wanted.

    Returns:
        bool ``[objects, height, width]``.

    Example:
        >>> object_masks(np.array([[0, 2]], np.uint8), [1, 2]).tolist()
        [[[False, False]], [[False, True]]]
    """
    return np.asarray(ids)[None] == np.asarray(object_ids, dtype=np.uint8)[:, None, None]
