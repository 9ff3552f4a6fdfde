"""LVOS v1 and v2: ``train``, ``val`` and ``test``, each with ``JPEGImages``, ``Annotations`` and ``SPLIT_meta.json``.

An object may begin on a later frame. Masks are wanted of the frames that have one; of test, of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import DataError
from .base import Dataset
from .listed import ListedVideos
from .maps import check_folders, split_folder, split_folders, video_folders

NAME = "lvos"


def detect(root: Path) -> bool:
    """Whether there is a ``*_meta.json`` beside the videos of a split."""
    return any(_metas(path) for path in (root, *split_folders(root).values()))


def splits(root: Path) -> tuple[str, ...]:
    """The folders; none for the folder of one split."""
    return tuple(split_folders(root))


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the videos of a split.

    Raises:
        DataError: A video lacks its frames or masks, or the list of objects is missing or damaged.
    """
    folder = split_folder(root, split)
    metas = _metas(folder)
    if len(metas) != 1:
        raise DataError(
            f"{folder} has {len(metas)} files called *_meta.json, and one, such as {folder.name}_meta.json, must list "
            "its objects"
        )
    opener = ListedVideos(folder / "JPEGImages", folder / "Annotations", metas[0], _every_frame)
    names = video_folders(opener.annotations)
    for name in names:
        check_folders(opener.images / name, opener.annotations / name)
    return Dataset(NAME, root, names, opener, split)


def _metas(folder: Path) -> list[Path]:
    """The files that list objects; those of expressions and captions are others."""
    return [path for path in sorted(folder.glob("*_meta.json")) if "expression" not in path.name]


def _every_frame(objects: Mapping[str, object], where: str) -> None:
    return None
