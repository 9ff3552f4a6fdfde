"""Photographs with masks and cut-outs with alpha, read from folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ...errors import DataError
from ..decoding import open_picture
from ..listing import list_pictures
from ..masks import decode_mask
from ..pictures import read_rgb

Pixels = NDArray[np.uint8]


def read_alpha(path: Path) -> Pixels:
    """A cut-out as uint8 ``[height, width, 4]``, RGB and alpha."""
    picture = open_picture(path)
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        raise DataError(f"{path} has no alpha channel; a cut-out needs one")
    return np.array(picture.convert("RGBA"))


@dataclass(frozen=True)
class Photographs:
    """A folder of photographs with masks: ``images/NAME.*`` and ``masks/NAME.png``.

    Attributes:
        name: The folder's name.
        images: The photographs.
        masks: The mask of each.
        union_is_object: Whether all ids together are one object (a person), of which the ids are parts.
    """

    name: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    union_is_object: bool = False

    def __len__(self) -> int:
        """The number of photographs."""
        return len(self.images)

    def read(self, index: int) -> tuple[Pixels, NDArray[np.int32]]:
        """A photograph and its ids."""
        image, ids = read_rgb(self.images[index]), decode_mask(self.masks[index]).ids
        if ids.shape != image.shape[:2]:
            raise DataError(f"{self.masks[index]} is not of the size of {self.images[index]}")
        return image, ids


def open_photographs(folder: str | os.PathLike[str], *, union_is_object: bool = False) -> Photographs:
    """List a folder of photographs with masks.

    Args:
        folder: Holds ``images`` and ``masks``.
        union_is_object: See :class:`Photographs`.

    Raises:
        DataError: A folder is missing or empty, or a photograph has no mask.
    """
    root = Path(folder)
    images = list_files(root / "images")
    masks = tuple(root / "masks" / f"{path.stem}.png" for path in images)
    for path in masks:
        if not path.is_file():
            raise DataError(f"{path}: no such mask; each picture in images needs one of its name")
    return Photographs(root.name, images, masks, union_is_object)


def list_files(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder in natural order, at least one."""
    found = list_pictures(folder)
    if not found:
        raise DataError(f"{folder} holds no pictures")
    return tuple(found)


def whole_objects(ids: NDArray[np.int32], *, smallest: float = 0.0005, holes: float = 0.2) -> Pixels:
    """A mask of the objects that are large enough, and no frames around other things: ids 1, 2, ..., at most 199.

    Args:
        ids: The mask.
        smallest: Least area, as a share of the picture.
        holes: Largest share of the filled outline that may belong to something else.
    """
    areas = np.bincount(ids.ravel())
    areas[0] = 0
    parts = ndimage.find_objects(ids)
    table, count = np.zeros(len(areas), np.uint8), 0
    for identity in np.nonzero(areas >= max(smallest * ids.size, 12))[0]:
        part = parts[identity - 1]
        region = (ids[part] == identity).astype(np.uint8)
        outlines, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        filled = cv2.drawContours(np.zeros_like(region), outlines, -1, 1, -1)
        if areas[identity] >= (1 - holes) * np.count_nonzero(filled) and count < 199:
            count += 1
            table[identity] = count
    objects: Pixels = table[ids]
    return objects
