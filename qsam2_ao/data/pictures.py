"""Picture files as arrays: RGB frames, and masks whose pixel values are object ids."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError

#: What SAM2 subtracts from RGB values of 0..1 and divides them by: ImageNet's, as in sam2.utils.misc.
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: File name endings that count as pictures in a folder of frames.
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def _open(path: str | os.PathLike[str]) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture ({error}); get or convert it again") from error


def read_rgb(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a picture of any mode as RGB, turned the way that viewers show it (EXIF orientation).

    Args:
        path: The file.

    Returns:
        uint8 ``[height, width, 3]``.

    Raises:
        DataError: The file is absent or damaged.

    Example:
        >>> read_rgb("frames/00000.jpg").shape
        (96, 96, 3)
    """
    return np.array(ImageOps.exif_transpose(_open(path)).convert("RGB"))


def read_ids(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a mask whose pixel values are object ids: a palette, greyscale or black-and-white picture.

    Args:
        path: The file.

    Returns:
        uint8 ``[height, width]``; 0 is background.

    Raises:
        DataError: The file is absent, damaged, or its pixels are colours instead of ids.

    Example:
        >>> np.unique(read_ids("DAVIS/Annotations/480p/bear/00000.png"))
        array([0, 1], dtype=uint8)
    """
    picture = _open(path)
    if picture.mode not in ("P", "L", "1"):
        raise DataError(
            f"{path} has mode {picture.mode}, but a mask's pixels must be object ids of 8 bits (a palette or "
            "greyscale PNG); convert its colours to ids"
        )
    return np.array(picture, dtype=np.uint8)


def list_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The picture files of a folder, in the order of time.

    Args:
        folder: The folder. Hidden files and other endings than :data:`PICTURE_SUFFIXES` are left out.

    Returns:
        The paths, by the number in their names where every name has one, otherwise by name.

    Raises:
        DataError: There is no such folder.

    Example:
        >>> list_pictures("frames")[0].name
        '00000.jpg'
    """
    try:
        files = [
            path
            for path in Path(folder).iterdir()
            if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
        ]
    except OSError as error:
        raise DataError(f"{folder} is not a folder that can be read ({error.strerror})") from error
    numbers = {path: int(path.stem) for path in files if path.stem.isdecimal()}
    return sorted(files, key=lambda path: (numbers.get(path, 0) if len(numbers) == len(files) else 0, path.name))
