"""Data by name: a folder, or "embedded" for procedural pictures and videos."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.davis import DavisSequence, read_davis
from ..data.mixture import parse_sources
from ..data.procedural import Sequence, generate_sequence, generate_split
from ..workspace import fingerprint
from . import EMBEDDED


def procedural_images(count: int, side: int) -> list[NDArray[np.uint8]]:
    """First frames of procedural training videos, to calibrate on.

    Args:
        count: How many.
        side: Side of the model's input in pixels; larger inputs get enlarged pictures of 256 pixels.

    Returns:
        uint8 ``[side, side, 3]`` each.

    Example:
        >>> procedural_images(2, 96)[0].shape
        (96, 96, 3)
    """
    size = (min(side, 256), min(side, 256))
    return [generate_sequence("train", i, size=size, num_frames=1).frames[0] for i in range(count)]


def calibration_source(name: str, count: int, side: int) -> list[NDArray[np.uint8]] | str:
    """What to calibrate on: procedural images for "embedded", else the folder.

    Args:
        name: "embedded" or a folder.
        count: How many procedural images.
        side: Side of the model's input in pixels.

    Returns:
        Calibration data as ``prepare_qsam2`` takes it.
    """
    return procedural_images(count, side) if name == EMBEDDED else name


def sources_fingerprint(data: str | None) -> list[Any] | None:
    """What tells data sets from changed ones.

    Args:
        data: Data sets as :func:`~qsam2_ao.data.mixture.parse_sources` reads them, "embedded", or None.

    Returns:
        JSON-able values.
    """
    if data is None or data == EMBEDDED:
        return fingerprint(data)
    return [[s.format, s.split, s.weight, *(fingerprint(s.path) or ())] for s in parse_sources(data)]


def videos_with_masks(name: str, split: str, count: int | None, frames: int) -> list[Sequence] | list[DavisSequence]:
    """Videos to score masks on: those of a DAVIS folder, or procedural ones for "embedded".

    Args:
        name: "embedded" or a folder.
        split: Of the procedural videos: "val" or "test".
        count: Only the first so many; None for all of the folder, or 64 procedural ones.
        frames: Frames of each procedural video.

    Returns:
        The videos.

    Raises:
        DataError: The folder is not laid out like DAVIS.
    """
    if name == EMBEDDED:
        return list(generate_split(split, count or 64, num_frames=frames))
    return read_davis(name)[:count]
