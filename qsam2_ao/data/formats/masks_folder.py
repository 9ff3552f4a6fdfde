"""Pictures with maps of ids: ``images/NAME.*`` and ``masks/NAME.png``, or ``NAME.jpg`` and ``NAME_mask.png`` in one.

The two folders may be called otherwise (``JPEGImages``, ``photos``; ``annotations``, ``labels``), and have folders for
splits: ``images/train``, or ``train/images``. What the values of a mask mean is said in :mod:`qsam2_ao.data.masks`;
255 is void unless there are larger ids.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ...errors import DataError
from ..annotation import Annotation
from ..listing import PICTURE_SUFFIXES
from ..masks import VOID, decode_mask
from .base import Dataset, PictureOpener
from .pairs import all_pairs, check_pairs, files_below, paired_folders

NAME = "images-and-masks"
_IMAGES = ("images", "imgs", "image", "photos", "pictures", "JPEGImages")
_MASKS = ("masks", "mask", "annotations", "labels", "SegmentationObject")


def detect(root: Path) -> bool:
    """Whether there are two such folders, or a mask beside a picture."""
    return root.is_dir() and bool(_places(root) or _beside(root))


def splits(root: Path) -> tuple[str, ...]:
    """The folders of splits."""
    return tuple(name for name in _places(root) if name)


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the pictures.

    Raises:
        DataError: A picture has no mask, or a mask no picture.
    """
    places = _places(root)
    if places:
        images, masks = all_pairs(root, places, split)
    else:
        masks = _beside(root)
        used = set(masks.values())
        images = {name: path for name, path in files_below(root).items() if path not in used}
    check_pairs(images, masks, what="mask")
    if not images:
        raise DataError(f"{root} has no pictures with masks")
    opener = PictureOpener(images, {name: partial(_read, path) for name, path in masks.items()}, overlapping=False)
    return Dataset(NAME, root, tuple(images), opener, split, pictures=True)


def _read(path: Path) -> Annotation:
    ids = decode_mask(path).ids
    return Annotation.from_ids(ids, void=VOID if ids.max(initial=0) <= VOID else None, source=str(path))


def _places(root: Path) -> dict[str, tuple[Path, Path]]:
    return paired_folders(root, _IMAGES, _MASKS, PICTURE_SUFFIXES)


def _beside(root: Path) -> dict[str, Path]:
    """The masks beside pictures, by the names of those."""
    files = files_below(root)
    ended = {name.removesuffix("_mask"): path for name, path in files.items() if name.endswith("_mask")}
    return {name: path for name, path in ended.items() if name in files}
