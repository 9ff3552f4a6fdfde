"""MOSE: ``train`` and ``valid``, each with ``JPEGImages/VIDEO/*.jpg`` and ``Annotations/VIDEO/*.png``.

The masks of valid are those of the first frame alone, which is all that is needed to track; its server scores.
"""

from __future__ import annotations

from pathlib import Path

from . import davis
from .base import Dataset
from .maps import split_folder, split_folders

NAME = "mose"


def detect(root: Path) -> bool:
    """Whether it has a folder of videos for each split."""
    return bool(split_folders(root))


def splits(root: Path) -> tuple[str, ...]:
    """The folders."""
    return tuple(split_folders(root))


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the videos of a split.

    Raises:
        DataError: A video lacks its frames or masks.
    """
    found = davis.open_split(split_folder(root, split), None)
    return Dataset(NAME, root, found.names, found.opener, split)
