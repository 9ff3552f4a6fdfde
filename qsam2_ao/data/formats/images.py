"""A folder of pictures without masks, to calibrate on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from ..listing import find_photographs
from .base import Dataset, NoAnnotations, PictureFiles, Video

NAME = "images"


def detect(root: Path) -> bool:
    """Whether there are pictures in it, and nothing that is named like masks."""
    return root.is_dir() and bool(find_photographs(root))


def splits(root: Path) -> tuple[str, ...]:
    """None."""
    return ()


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the pictures, also those in folders below; see :func:`~qsam2_ao.data.listing.find_photographs`.

    Raises:
        DataError: There are none.
    """
    paths = find_photographs(root)
    if not paths:
        raise DataError(f"{root} has no pictures")
    names = tuple(path.relative_to(root).as_posix() for path in paths)
    return Dataset(NAME, root, names, _Opener(root), pictures=True, has_masks=False)


@dataclass(frozen=True)
class _Opener:
    root: Path

    def __call__(self, name: str) -> Video:
        path = self.root / name
        return Video(name, PictureFiles([path]), (path.stem,), NoAnnotations())
