"""Data by name: a data set's folder, or "embedded" for procedural pictures and videos."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..data.datasets import open_dataset
from ..data.formats import sav_train
from ..data.formats.base import Dataset
from ..data.mixture import parse_sources
from ..data.procedural import generate_sequence, generate_split
from ..data.types import VideoSequence
from ..errors import QSAM2Error
from ..reporting.notes import note
from ..workspace import fingerprint
from . import EMBEDDED, EMBEDDED_NAMES


def data_for(model: str, given: str | None, name: str) -> str:
    """The data that were named, or procedural data for the embedded models, and for no other one.

    Args:
        model: The model's name.
        given: What was named; None for nothing.
        name: What the argument or option is called.

    Returns:
        The name of the data; of a model that is not for procedural data it is noted that it gets them.

    Raises:
        QSAM2Error: Nothing was named, and the model is another one.

    Example:
        >>> data_for("embedded", None, "calibration"), data_for("mine.pt", "photographs/", "calibration")
        ('embedded', 'photographs/')
    """
    if given is not None:
        return given
    if model not in EMBEDDED_NAMES:
        raise QSAM2Error(f"{name} is missing: name a folder of your data, or 'embedded' for procedural videos")
    if model != EMBEDDED:
        note(f"{name} names no data: procedural scenes are taken, and {model} is for photographs and real video")
    return EMBEDDED


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


@dataclass(frozen=True)
class FirstFrames(Sequence[NDArray[np.uint8]]):
    """The first annotated frame of each video of a data set, read when it is asked for.

    Attributes:
        dataset: The videos.
    """

    dataset: Dataset

    def __len__(self) -> int:
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, index: slice) -> FirstFrames: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | FirstFrames:
        if isinstance(index, slice):
            return FirstFrames(self.dataset[index])
        video = self.dataset[index]
        return video.frames[video.annotated[0] if video.annotated else 0]


def calibration_source(name: str, count: int, side: int) -> list[NDArray[np.uint8]] | FirstFrames | str:
    """What to calibrate on: procedural images for "embedded", else the folder, or frames of its video files.

    Args:
        name: "embedded" or a folder.
        count: How many procedural images.
        side: Side of the model's input in pixels.

    Returns:
        Calibration data as ``prepare_qsam2`` takes it.

    Raises:
        QSAM2Error: It is a file.
    """
    if name == EMBEDDED:
        return procedural_images(count, side)
    if Path(name).is_file():
        raise QSAM2Error(f"{name} is a file; name a folder of pictures to calibrate on, such as {Path(name).parent}")
    # Other data sets have their frames as pictures, which calibration finds itself.
    return FirstFrames(open_dataset(name)) if sav_train.detect(Path(name)) else name


def sources_fingerprint(data: str | None, without: Iterable[str | os.PathLike[str] | None] = ()) -> list[Any] | None:
    """What tells data sets from changed ones.

    Args:
        data: Data sets as :func:`~qsam2_ao.data.mixture.parse_sources` reads them, "embedded", or None.
        without: Files and folders among them that do not count.

    Returns:
        JSON-able values.
    """
    if data is None or data == EMBEDDED:
        return fingerprint(data)
    return [[s.format, s.split, s.weight, *(fingerprint(s.path, without) or ())] for s in parse_sources(data)]


def videos_with_masks(name: str, split: str, count: int | None, frames: int) -> Sequence[VideoSequence]:
    """Videos to score masks on: those of a data set, or procedural ones for "embedded".

    Args:
        name: "embedded" or a data set's folder.
        split: Of the procedural videos: "val" or "test"; a data set's "val" is taken where it has splits.
        count: Only the first so many; None for all of the folder, or 64 procedural ones.
        frames: Frames of each procedural video.

    Returns:
        The videos.

    Raises:
        DataError: The folder is no data set that is known here, or has no masks.
    """
    if name == EMBEDDED:
        return list(generate_split(split, count or 64, num_frames=frames))
    return open_dataset(name, default_split="val").labelled()[:count]
