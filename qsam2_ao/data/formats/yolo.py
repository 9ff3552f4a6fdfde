"""YOLO polygons: ``images/NAME.*`` and ``labels/NAME.txt`` with a line "class x y x y ..." for each object.

Coordinates are shares of the picture's sides. Splits are ``images/train`` and ``labels/train``, or ``train/images`` and
``train/labels``. A picture without a file of labels has no objects. Objects are numbered by their lines, from 1.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...optional import needed
from ..annotation import Annotation, LazyMasks
from ..decoding import picture_size
from .base import Dataset, PictureOpener
from .pairs import all_pairs, check_pairs, paired_folders
from .records import checked_size

NAME = "yolo"
#: The classes' names, which some tools write beside the labels.
_CLASSES = "classes.txt"
#: How far beyond the edge a corner may be, in sides of the picture: labellers round a little over it.
_BEYOND = 0.1

_logger = logging.getLogger(__name__)


def detect(root: Path) -> bool:
    """Whether there are text files in a folder ``labels``, beside that of the classes' names."""
    return any(path.name != _CLASSES for _, labels in _places(root).values() for path in labels.rglob("*.txt"))


def splits(root: Path) -> tuple[str, ...]:
    """The folders of splits."""
    return tuple(name for name in _places(root) if name)


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the pictures.

    Raises:
        DataError: Labels have no picture.
    """
    images, labels = all_pairs(root, _places(root), split, {".txt"})
    labels = {name: path for name, path in labels.items() if path.name != _CLASSES or name in images}
    check_pairs(images, labels, what="file of labels", required=False)
    if missing := [path for name, path in images.items() if name not in labels]:
        _logger.warning(
            "%d of %d pictures in %s have no file of labels (%s, ...) and count as without objects",
            len(missing),
            len(images),
            root,
            missing[0].name,
        )
    loads = {name: partial(_read, labels.get(name), path) for name, path in images.items()}
    return Dataset(NAME, root, tuple(images), PictureOpener(images, loads, overlapping=True), split, pictures=True)


def _read(path: Path | None, image: Path) -> Annotation:
    size = checked_size(*picture_size(image), image)
    if path is None:
        return Annotation(size, {}, source=str(image))
    polygons = read_polygons(path)

    def decode(number: int) -> NDArray[np.bool_]:
        return fill_polygon(polygons[number], size)

    return Annotation(size, LazyMasks(list(polygons), decode), source=str(path))


def read_polygons(path: Path) -> dict[int, NDArray[np.float64]]:
    """The polygons of a file.

    Args:
        path: The file.

    Returns:
        Number of the line, from 1 -> float64 ``[corners, 2]``, x and y in shares of the picture's sides.

    Raises:
        DataError: A line is no polygon.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error})") from error
    found = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) == 5:
            raise DataError(f"{path}, line {number} is a box (class x y width height), and masks need polygons")
        try:
            corners = np.array(words[1:], np.float64).reshape(-1, 2)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not a class and pairs of coordinates") from error
        if len(corners) < 3 or not bool(((corners >= -_BEYOND) & (corners <= 1 + _BEYOND)).all()):
            raise DataError(f"{path}, line {number} is no polygon: it needs 3 corners, in shares of 0 to 1")
        found[number] = corners
    return found


def fill_polygon(corners: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a polygon, as the tools of YOLO do.

    Args:
        corners: ``[corners, 2]``, x and y in shares of the picture's sides.
        size: Height and width of the picture in pixels.

    Returns:
        bool ``[height, width]``.

    Raises:
        MissingPackageError: OpenCV is not installed.
    """
    mask = np.zeros(size, np.uint8)
    places = np.round(corners * [size[1], size[0]]).astype(np.int32)
    needed("cv2").fillPoly(mask, [places], 1)
    return mask.astype(bool)


def _places(root: Path) -> dict[str, tuple[Path, Path]]:
    return paired_folders(root, ("images",), ("labels",), {".txt"})
