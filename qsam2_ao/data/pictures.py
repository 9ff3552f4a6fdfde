"""Picture files as RGB arrays: the one reader of pictures in the package.

Whatever the file holds becomes 8 bits a channel by these rules:

- A palette, black and white, grey, CMYK, YCbCr and the like are converted as Pillow does; an alpha channel is dropped,
  as SAM2's own examples do.
- Greys of 16 bits, and whole numbers of 32 bits up to 65535, are scaled from 8, 12 or 16 bits: the fewest that hold the
  largest value, since cameras and microscopes store 12 bits in 16. The frames of one sequence are scaled alike, by the
  largest value of all of them.
- Fractions are scaled from 0..1. Other values, negative ones and NaN are refused.
- Colours of 16 bits a channel keep their upper 8 bits; a picture that is nearly black afterwards is warned of.

Pictures of more than :data:`~qsam2_ao.data.decoding.MAX_PIXELS` are refused;
:func:`~qsam2_ao.data.decoding.pixel_limit`, the commands' ``--max-pixels`` and the environment variable
``QSAM2_MAX_PIXELS`` set another limit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from .decoding import SIXTEEN_BITS, WHITE_IS_ZERO, open_picture
from .listing import PICTURE_SUFFIXES, list_pictures
from .masks import read_ids

__all__ = ["PICTURE_SUFFIXES", "FrameReader", "list_pictures", "read_ids", "read_rgb", "to_rgb"]

#: What SAM2 subtracts from RGB values of 0..1 and divides them by: ImageNet's, as in sam2.utils.misc.
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_logger = logging.getLogger(__name__)


def read_rgb(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a picture of any kind as RGB, turned the way that viewers show it (EXIF orientation).

    Args:
        path: The file.

    Returns:
        uint8 ``[height, width, 3]``; this module's first lines say how other depths are scaled.

    Raises:
        DataError: The file is absent, damaged, too large, holds several pictures or values out of range.
        MissingPackageError: It is HEIC, and pillow-heif is not installed.

    Example:
        >>> read_rgb("frames/00000.jpg").shape
        (96, 96, 3)
    """
    return to_rgb(open_picture(path), str(path))


class FrameReader:
    """Reads the frames of one sequence as RGB, all on one scale.

    Args:
        paths: All frames. They are looked through for the largest value if one of 16 bits is met.

    Example:
        >>> frames = list_pictures("clip")  # doctest: +SKIP
        >>> FrameReader(frames)(frames[0]).dtype  # doctest: +SKIP
        dtype('uint8')
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    @cached_property
    def _largest(self) -> int:
        return max(largest_value(open_picture(path)) for path in self.paths)

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Read one frame; see :func:`read_rgb`."""
        return to_rgb(open_picture(path), str(path), lambda largest: max(largest, self._largest))


def to_rgb(picture: Image.Image, name: str, largest: Callable[[int], int] = int) -> NDArray[np.uint8]:
    """A decoded picture of any mode as RGB.

    Args:
        picture: The picture.
        name: What to call it in errors.
        largest: From the largest value of a picture of 16 bits to that of the sequence that it belongs to.

    Returns:
        uint8 ``[height, width, 3]``.

    Raises:
        DataError: Its values are out of range, or Pillow cannot convert them.

    Example:
        >>> to_rgb(Image.new("L", (2, 1), 7), "grey").tolist()
        [[[7, 7, 7], [7, 7, 7]]]
    """
    if picture.mode == "F":
        grey = _from_fractions(np.asarray(picture), name)
    elif _is_wide(picture):
        values = np.asarray(picture)
        if int(values.min()) < 0 or int(values.max()) > 65535:
            raise DataError(
                f"{name} has values from {values.min()} to {values.max()}, but whole numbers must be from 0 to 65535 "
                "(16 bits); scale them"
            )
        grey = _from_bits(values, _bits(largest(int(values.max()))))
        grey = 255 - grey if picture.info.get(WHITE_IS_ZERO) else grey
    else:
        return _from_eight_bits(picture, name)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _is_wide(picture: Image.Image) -> bool:
    return picture.mode == "I" or picture.mode.startswith("I;16")


def largest_value(picture: Image.Image) -> int:
    """The largest value of a picture of 16 bits; 0 of others, which are scaled by their format alone."""
    return int(np.asarray(picture).max()) if _is_wide(picture) else 0


def _bits(largest: int) -> int:
    return next(bits for bits in (8, 12, 16) if largest < 1 << bits)


def _from_bits(values: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    top = (1 << bits) - 1
    table = (np.arange(top + 1) * 255 + top // 2) // top
    return table.astype(np.uint8)[values]


def _from_fractions(values: NDArray[np.floating], name: str) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())  # NaN if one value is
    if not (low >= 0 and high <= 1):
        raise DataError(f"{name} has values from {low:g} to {high:g}, but fractions must be from 0 to 1; scale them")
    return np.rint(values * 255).astype(np.uint8)


def _from_eight_bits(picture: Image.Image, name: str) -> NDArray[np.uint8]:
    try:
        pixels = np.array(picture.convert("RGB"))
    except ValueError as error:
        raise DataError(f"{name} has mode {picture.mode}, which cannot become RGB ({error}); convert it") from error
    if picture.info.get(SIXTEEN_BITS) and pixels.max(initial=0) < 16:
        _logger.warning(
            "%s is nearly black: of its 16 bits a channel the upper 8 are read, and nothing is in the upper 4; if its "
            "values have fewer bits, scale them to 16",
            name,
        )
    return pixels
