"""ADE20K: the challenge's ``images/training`` and ``annotations/training``, or the full set's ``X_seg.png``.

Of the challenge, each of the 150 classes in a picture is an object, whose id is the class. Of the full set, objects are
the instances in the blue channel, numbered from 1. Where nothing is labelled (0) is void. Parts are not read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..annotation import Annotation
from ..decoding import open_picture
from ..listing import PICTURE_SUFFIXES
from .base import Dataset, PictureOpener
from .pairs import all_pairs, check_pairs, files_below, paired_folders

NAME = "ade20k"
_SEGMENTS = "_seg"
_SPLITS = ("training", "validation")


def detect(root: Path) -> bool:
    """Whether pictures are called as in ADE20K."""
    if any(_is_ours(path) for images, _ in _places(root).values() for path in images.iterdir()):
        return True
    full, pattern = _full_set(root), f"ADE_*{_SEGMENTS}.png"
    places = (full.glob(pattern), *((full / split).rglob(pattern) for split in _SPLITS))
    return any(next(found, None) is not None for found in places)


def splits(root: Path) -> tuple[str, ...]:
    """The folders."""
    if _places(root):
        return tuple(name for name in _places(root) if name)
    return tuple(name for name in _SPLITS if (_full_set(root) / name).is_dir())


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the pictures.

    Raises:
        DataError: A picture has no annotation, or the reverse.
    """
    read: Callable[[Path], Annotation]
    if places := _places(root):
        images, masks = all_pairs(root, places, split)
        read = read_classes
    else:
        files = files_below(_full_set(root) / (split or ""))
        masks = {key.removesuffix(_SEGMENTS): path for key, path in files.items() if key.endswith(_SEGMENTS)}
        images = {key: path for key, path in files.items() if path.suffix.lower() != ".png"}
        read = read_instances
    check_pairs(images, masks, what="annotation")
    if not images:
        raise DataError(f"{root} has no pictures of ADE20K")
    opener = PictureOpener(images, {name: partial(read, path) for name, path in masks.items()}, overlapping=False)
    return Dataset(NAME, root, tuple(images), opener, split, pictures=True)


def read_classes(path: Path) -> Annotation:
    """A picture's classes as objects.

    Args:
        path: The challenge's greyscale PNG.

    Raises:
        DataError: It is damaged or has colours.
    """
    picture = open_picture(path)
    if picture.mode not in ("L", "P"):
        raise DataError(f"{path} has mode {picture.mode}, and the challenge's annotations are grey; get it again")
    ids = np.asarray(picture)
    found = Annotation.from_ids(ids, void=None, source=str(path))
    return Annotation(found.size, found.masks, ids == 0, source=str(path))


def read_instances(path: Path) -> Annotation:
    """A picture's instances as objects.

    Args:
        path: The full set's ``X_seg.png``: blue is the instance.

    Raises:
        DataError: It is damaged or has no colours.
    """
    picture = open_picture(path)
    if picture.mode != "RGB":
        raise DataError(f"{path} has mode {picture.mode}, and ADE20K's colours (classes and instances) are RGB")
    blue = np.asarray(picture)[..., 2]
    # The values in use are spread over 0 to 255: instances are numbered by their order, as ADE20K's own tool does.
    present = np.unique(blue[blue > 0])
    ids = np.where(blue > 0, np.searchsorted(present, blue) + 1, 0).astype(np.int32)
    found = Annotation.from_ids(ids, void=None, source=str(path))
    return Annotation(found.size, found.masks, ids == 0, source=str(path))


def _places(root: Path) -> dict[str, tuple[Path, Path]]:
    return paired_folders(root, ("images",), ("annotations",), PICTURE_SUFFIXES)


def _is_ours(path: Path) -> bool:
    return path.name.startswith("ADE_")


def _full_set(root: Path) -> Path:
    """The folder of the splits, which the full set has two folders down."""
    return root / "images/ADE" if (root / "images/ADE").is_dir() else root
