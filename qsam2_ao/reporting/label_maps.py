"""Masks of several objects as one map of ids, stored as DAVIS stores its annotations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..data.procedural import davis_palette
from .overlay import save_picture

_WRITER = ("Software", "qsam2_ao")


def label_map(logits: Mapping[int, NDArray[np.float32]]) -> NDArray[np.uint8]:
    """One id for each pixel: the object with the largest logit there, 0 where none is above 0.

    Args:
        logits: Object id (1 to 254) -> float ``[height, width]``; at least one.

    Returns:
        uint8 ``[height, width]``; of equal objects, the first one's id.

    Example:
        >>> label_map({1: np.array([[2.0, -1.0]]), 7: np.array([[3.0, -2.0]])})
        array([[7, 0]], dtype=uint8)
    """
    shape = next(iter(logits.values())).shape
    ids, largest = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    for object_id, values in logits.items():
        larger = values > largest
        np.copyto(ids, np.uint8(object_id), where=larger)
        np.copyto(largest, values, where=larger)
    return ids


def save_label_map(ids: NDArray[np.uint8], path: Path) -> Path:
    """Write ids as a palette PNG, which says that this package wrote it.

    Args:
        ids: uint8 ``[height, width]``.
        path: The file.

    Returns:
        The path.

    Raises:
        QSAM2Error: It cannot be written.
    """
    picture = Image.fromarray(ids)
    picture.putpalette(davis_palette())
    about = PngInfo()
    about.add_text(*_WRITER)
    return save_picture(picture, path, pnginfo=about)


def is_label_map(path: Path) -> bool:
    """Whether a file is one that :func:`save_label_map` wrote, rather than a mask of the user's.

    Example:
        >>> is_label_map(save_label_map(ids, Path("truck_mask.png")))  # doctest: +SKIP
        True
    """
    key, value = _WRITER
    try:
        with Image.open(path) as picture:
            return picture.info.get(key) == value
    except (OSError, ValueError, SyntaxError):
        return False
