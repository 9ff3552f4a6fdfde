"""Data sets by their path: the one way in to videos and pictures with masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..errors import DataError
from ..spelling import unknown_name
from .formats import (
    ade20k,
    coco,
    coco_panoptic,
    davis,
    images,
    lvos,
    masks_folder,
    mose,
    sa1b,
    sav,
    sav_train,
    yolo,
    youtube_vos,
)
from .formats.base import Dataset
from .formats.records import read_names

#: Splits that mean the same.
_CALLED = ({"val", "valid", "validation"}, {"train", "training"}, {"test", "testing"})


class Format(Protocol):
    """A module of :mod:`qsam2_ao.data.formats`."""

    NAME: str

    def detect(self, root: Path) -> bool:
        """Whether the layout is this one."""
        ...

    def splits(self, root: Path) -> tuple[str, ...]:
        """The splits that there are; none where all is one."""
        ...

    def open_split(self, root: Path, split: str | None) -> Dataset:
        """Open a split of :meth:`splits`, or what there is if it has none."""
        ...


#: In the order in which they are tried: those that ask for more come first.
FORMATS: dict[str, Format] = {
    module.NAME: module
    for module in (
        *(youtube_vos, lvos, sav, sav_train, davis, mose),
        *(sa1b, coco, coco_panoptic, ade20k, yolo, masks_folder, images),
    )
}


def open_dataset(
    path: str | os.PathLike[str],
    format: str = "auto",
    *,
    split: str | None = None,
    sequences: Sequence[str] | str | os.PathLike[str] | None = None,
    default_split: str | None = None,
) -> Dataset:
    """Open a data set. Only lists are read; files are, when they are asked for.

    Args:
        path: The folder as it was unpacked.
        format: The layout, one of :data:`FORMATS`; "auto" finds it.
        split: Such as "train" or "val", as the data set calls it ("val" and "valid" are the same); "all" for every
            video that has annotations.
        sequences: Only these videos, in this order: their names, or a file that lists them as DAVIS and SA-V do.
        default_split: The split to take where ``split`` does not say and the data set has one of that name.

    Returns:
        The videos; of a data set of pictures, each is a video of one frame.

    Raises:
        DataError: There is no such folder, its layout is unknown, it has splits and none was chosen, or a file or
            folder that its lists name is missing. What is wrong inside a file shows when it is read, and names it.

    Example:
        >>> dataset = open_dataset("DAVIS")
        >>> video = dataset[0]
        >>> video.frames[0].shape, video.annotation(0).mask(1).shape
        ((480, 854, 3), (480, 854))
    """
    root = Path(path)
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    layout = _layout(root, format)
    found = layout.open_split(root, _choose(root, layout, split, default_split))
    if sequences is None:
        return found
    return found.select(read_names(Path(sequences)) if isinstance(sequences, (str, os.PathLike)) else sequences)


def _layout(root: Path, format: str) -> Format:
    if format != "auto":
        if format not in FORMATS:
            raise DataError(unknown_name("format", format, ("auto", *FORMATS)))
        return FORMATS[format]
    for layout in FORMATS.values():
        if layout.detect(root):
            return layout
    raise DataError(
        f'{root} is not laid out like any data set that is known here ({", ".join(FORMATS)}); see the page "Data '
        'formats", or name its format'
    )


def _choose(root: Path, layout: Format, split: str | None, default: str | None) -> str | None:
    known = layout.splits(root)
    if split == "all" and "all" not in known:
        return None
    wanted = split or (default if known else None)
    if wanted is None and not known:
        return None
    names = [] if wanted is None else _names_of(wanted)
    # COCO's have the year behind them.
    years = [name for name in known if name.rstrip("0123456789") in names]
    for name in (*names, *(years if len(years) == 1 else ())):
        if name in known:
            return name
    if split is None:
        raise DataError(
            f'{root} has the splits {", ".join(known)}; choose one of them, or "all"; in a list of data sets it is '
            f"written {root}@{known[0]}"
        )
    if not known:
        raise DataError(f"{root} has no splits, so that there is no {wanted!r} in it; leave the split out")
    raise DataError(f"{root}: {unknown_name('split', wanted, known)}")


def _names_of(split: str) -> list[str]:
    """What a split may be called: first as it was given."""
    return [split, *(other for group in _CALLED if split in group for other in sorted(group - {split}))]
