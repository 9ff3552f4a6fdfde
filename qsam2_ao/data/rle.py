"""Masks as COCO's run lengths: the text that pycocotools writes and reads, and the plain lists of older files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


class Rle(TypedDict):
    """A mask as JSON holds it.

    Attributes:
        size: Height and width in pixels.
        counts: Lengths of the runs of zeros and ones in turn, down one column after the other, as COCO's text.
    """

    size: list[int]
    counts: str


def encode_rle(mask: NDArray[np.bool_]) -> Rle:
    """Encode a mask; the text equals that of ``pycocotools.mask.encode``.

    Args:
        mask: bool ``[height, width]``, at least one pixel.

    Raises:
        DataError: It is not a boolean picture.

    Example:
        >>> encode_rle(np.eye(3, dtype=bool))
        {'size': [3, 3], 'counts': '013000'}
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool or mask.size == 0:
        raise DataError(f"a mask to encode must be bool [height, width], got {mask.dtype} {list(mask.shape)}")
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start = [0, 0] if flat[0] else [0]  # the first run is one of zeros
    counts = np.diff(np.concatenate([start, changes, [flat.size]]))
    return {"size": list(mask.shape), "counts": _to_text(counts)}


def decode_rle(rle: Mapping[str, object]) -> NDArray[np.bool_]:
    """Decode a mask.

    Args:
        rle: ``size`` (height, width), and ``counts``: COCO's text, as ``str`` or ``bytes``, or a list of run lengths.

    Returns:
        bool ``[height, width]``.

    Raises:
        DataError: It is not such a mapping, or the runs do not fill the mask.

    Example:
        >>> decode_rle({"size": [2, 2], "counts": [1, 2, 1]}).tolist()
        [[False, True], [True, False]]
    """
    size, counts = rle.get("size"), rle.get("counts")
    if (
        not isinstance(size, Sequence)
        or len(size) != 2
        or not all(type(side) is int and side > 0 for side in size)
        or not isinstance(counts, (str, bytes, list))
    ):
        raise DataError("a mask in COCO's run lengths has size [height, width] and counts, a text or a list")
    try:
        runs = np.array(counts, np.int64) if isinstance(counts, list) else _from_text(counts)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"the counts of a mask in COCO's run lengths cannot be read ({error})") from error
    height, width = size
    # Each is compared too, since sums of huge ones overflow.
    if runs.ndim != 1 or ((runs < 0) | (runs > height * width)).any() or int(runs.sum()) != height * width:
        raise DataError(f"the runs of a mask in COCO's run lengths do not fill its {height} x {width} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _to_text(counts: NDArray[np.int64]) -> str:
    """Each run less the one two before it, in digits of 5 bits, the lowest first: COCO's own text."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    digits, kept = [], []
    left = np.ones(len(values), bool)
    while left.any():
        digit = values & 31
        values = values >> 5
        more = left & np.where(digit & 16, values != -1, values != 0)
        digits.append(digit + 32 * more + 48)
        kept.append(left)
        left = more
    return np.stack(digits, 1)[np.stack(kept, 1)].astype(np.uint8).tobytes().decode("ascii")


def _from_text(text: str | bytes) -> NDArray[np.int64]:
    data = text.encode("ascii") if isinstance(text, str) else text
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError("it is not COCO's text")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("it ends within a number")
    return np.array(runs, np.int64)
