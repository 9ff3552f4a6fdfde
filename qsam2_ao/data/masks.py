"""Mask files as object ids: the one reader of masks in the package, and what their values mean.

The convention everywhere: 0 is background, 1 to 254 are objects, and 255 is *void* as in DAVIS, pixels of which nothing
is known: no object to ask about, background in training, left out of scores. A mask with nothing but 0 and 255 is black
and white instead, one object, whose id is 1; in a sequence, if all its masks are so.

What a file becomes:

- Whole numbers of 8, 16 or 32 bits, also as floating point, are ids as they stand. So are a palette's indices, unless
  the palette is one of greys, such as black and white.
- True and false, 0 and 255, 0 and 65535: one object.
- A soft-edged mask (smoothed, anti-aliased, or saved as JPEG), if most of it is nearly black or white: one object, cut
  at half the range, with a warning.
- Grey stored as RGB as its greys; colours of DAVIS's palette as their indices.
- Anything else is refused: other colours, an alpha channel, smoothed ids, photographs, ids in a JPEG.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from .decoding import open_picture

#: The label of pixels of which nothing is known.
VOID = 255
#: Formats that change values a little.
_LOSSY = ("JPEG", "MPO", "HEIF")
#: Least part of a soft-edged mask that is within a sixteenth of the range of black or white.
_CLEAR = 0.6

#: What the pixels of a mask may be.
Values = NDArray[np.integer] | NDArray[np.float32] | NDArray[np.bool_]

_logger = logging.getLogger(__name__)
_told: set[Path] = set()


class Decoded(NamedTuple):
    """A mask file's ids.

    Attributes:
        ids: int32 ``[height, width]``.
        kind: What its values were: ids; nothing but 0 and 255 (or 65535), which became 1; or one object, told by true
            and false or by soft edges.
    """

    ids: NDArray[np.int32]
    kind: Literal["ids", "two values", "one object"]


def read_ids(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a mask of object ids up to 255.

    Args:
        path: The file.

    Returns:
        uint8 ``[height, width]``; 0 is background, :data:`VOID` unknown.

    Raises:
        DataError: The file is absent, damaged, or no mask of ids up to 255; the message says why not.

    Example:
        >>> np.unique(read_ids("DAVIS/Annotations/480p/bear/00000.png"))  # doctest: +SKIP
        array([0, 1], dtype=uint8)
    """
    return _of_eight_bits(decode_mask(path).ids, path)


class MaskReader:
    """Reads the masks of one sequence: where one has nothing but 0 and 255, that is void if others have ids.

    Args:
        paths: All masks. They are looked through if a black and white one is met.

    Example:
        >>> masks = list_pictures("Annotations/bear")  # doctest: +SKIP
        >>> MaskReader(masks)(masks[0]).dtype  # doctest: +SKIP
        dtype('uint8')
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    @cached_property
    def _has_ids(self) -> bool:
        return any(decode_mask(path).kind == "ids" for path in self.paths)

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Read one mask; see :func:`read_ids`."""
        ids, kind = decode_mask(path)
        if kind == "two values" and ids.any() and self._has_ids:
            return np.where(ids > 0, VOID, 0).astype(np.uint8)
        return _of_eight_bits(ids, path)


def _of_eight_bits(ids: NDArray[np.int32], path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    if (largest := int(ids.max(initial=0))) > 255:
        raise DataError(f"{path} has the id {largest}, and ids are 1 to 254 here; number its objects again")
    return ids.astype(np.uint8)


def decode_mask(path: str | os.PathLike[str]) -> Decoded:
    """Read a mask of ids of any size.

    Args:
        path: The file.

    Raises:
        DataError: The file is absent, damaged, or no mask of ids; the message says why not.

    Example:
        >>> decode_mask("cells.png").ids.max()  # doctest: +SKIP
        312
    """
    picture = open_picture(path)
    values = _values(picture, path)
    low, high = values.min(), values.max()
    if not low >= 0:
        raise DataError(f"{path} has the value {low}, and ids are not negative; number its objects again")
    full = 1 if values.dtype.kind == "f" else 255 if high <= 255 else 65535
    if values.dtype == bool:
        return Decoded(values.astype(np.int32), "one object")
    if np.isin(values, (0, full)).all():
        return Decoded((values > 0).astype(np.int32), "two values")
    edges = picture.format in _LOSSY or values.dtype.kind == "f"
    if edges or (not _in_davis_palette(picture) and _is_soft(values, full)):
        return Decoded(_cut(values, full, path).astype(np.int32), "one object")
    return Decoded(values.astype(np.int32), "ids")


def _values(picture: Image.Image, path: str | os.PathLike[str]) -> Values:
    """What the pixels say, before it is asked what they mean: ``[height, width]``."""
    if picture.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        if picture.getchannel(picture.getbands()[-1]).getextrema() != (255, 255):
            raise DataError(
                f"{path} has an alpha channel, and it is not clear whether that or its colours are the mask: save one "
                "of them as a greyscale PNG"
            )
        # Of a palette with alpha, the indices.
        picture = picture.convert("RGB") if picture.mode.startswith("RGB") else picture.getchannel(0)
    if picture.mode == "P":
        return _indices(picture)
    if picture.mode in ("1", "L", "I") or picture.mode.startswith("I;16"):
        return np.asarray(picture)
    if picture.mode == "F":
        values = np.asarray(picture)
        if not np.isfinite(values).all():
            raise DataError(f"{path} has NaN or infinite values, which are no ids; save it again")
        return values.astype(np.int64) if (values == np.rint(values)).all() else values
    if picture.mode == "RGB":
        return _of_colours(np.asarray(picture), path)
    raise DataError(
        f"{path} has mode {picture.mode}, but a mask's pixels must be object ids; save it as a greyscale PNG"
    )


def _in_davis_palette(picture: Image.Image) -> bool:
    """Whether it was written as ids by a tool that knows DAVIS, such as this package."""
    return picture.mode == "P" and np.array_equal(_palette(picture), davis_colours())


def _palette(picture: Image.Image) -> NDArray[np.uint8]:
    colours = np.zeros((256, 3), np.uint8)
    stored = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    colours[: len(stored)] = stored[:256]
    return colours


def _indices(picture: Image.Image) -> NDArray[np.uint8]:
    """A palette's indices; its greys where the palette is one of greys, as in a GIF of a greyscale mask."""
    indices, colours = np.asarray(picture), _palette(picture)
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    greys = colours[:, 0]
    distinct = len(np.unique(greys[used])) == len(used) > 1  # an empty palette is all black
    if distinct and _is_grey(colours[used]) and not np.array_equal(colours[used], davis_colours()[used]):
        return greys[indices]
    return indices


def _is_grey(colours: NDArray[np.uint8]) -> bool:
    return bool((colours == colours[..., :1]).all())


def _of_colours(colours: NDArray[np.uint8], path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Ids of colours that say them plainly."""
    if _is_grey(colours):
        return colours[..., 0]
    codes = colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    known = davis_colours().astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    order = np.argsort(known)
    place = np.searchsorted(known[order], codes).clip(max=255)
    ids = order[place].astype(np.uint8)
    if (known[ids] == codes).all():
        return ids
    raise DataError(
        f"{path} has {len(np.unique(codes))} colours, not those of DAVIS's palette, but a mask's pixels must be object "
        "ids: convert colours to ids (COCO's panoptic PNGs and ADE20K's raw ones have converters of their own)"
    )


def davis_colours() -> NDArray[np.uint8]:
    """The palette of the PASCAL VOC and DAVIS annotations: uint8 ``[256, 3]``, RGB."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def _is_soft(values: Values, full: int) -> bool:
    """Whether values lead from one region to another, instead of each being a region."""
    below, above = _extremes(values, np.minimum), _extremes(values, np.maximum)
    present, place = np.unique(values, return_inverse=True)
    place = place.reshape(values.shape)
    flat = np.bincount(place[below == above], minlength=len(present)) / np.bincount(place.ravel())
    region = flat >= 0.5
    regions, seam = present[region], ~region[place]
    # An object that is too small to have an inside is above or below its surroundings, and does not lead over to them.
    leads = np.count_nonzero(seam & (below < values) & (values < above)) > 0.5 * np.count_nonzero(seam)
    margin, middle, steps = full / 16, full / 2, values[seam]
    if not np.isin(regions, (0, full)).all():
        return bool(leads and np.count_nonzero(~region) > max(len(regions), 2) and (steps > margin).any())
    if leads and np.count_nonzero((steps > margin) & (steps < full - margin)) > 0.02 * len(steps):
        return True
    # Enlarged edges are stairs, and JPEG trembles: values on both sides of the middle, where black and white prevail.
    above_middle, below_middle = values[values > middle], values[values <= middle]
    return bool(
        ((values > margin) & (values < full)).any()  # or there are ids and void
        and (steps > middle).any()
        and (steps <= middle).any()
        and np.count_nonzero(above_middle >= full - margin) > 0.5 * len(above_middle)
        and np.count_nonzero(below_middle <= margin) > 0.5 * len(below_middle)
    )


def _extremes(values: Values, choose: np.ufunc) -> Values:
    """The least or largest value of the 3 x 3 pixels around each."""
    for axis in (0, 1):
        framed = np.pad(values, [(1, 1) if i == axis else (0, 0) for i in (0, 1)], mode="edge")
        first, second, third = (framed.take(range(i, i + values.shape[axis]), axis) for i in (0, 1, 2))
        values = choose(choose(first, second), third)
    return values


def _cut(values: Values, full: int, path: str | os.PathLike[str]) -> NDArray[np.bool_]:
    """A soft-edged mask of one object, cut at half the range."""
    dark, bright = values <= full / 16, values >= full - full / 16
    if not bright.any() or np.count_nonzero(dark | bright) < _CLEAR * values.size:
        raise DataError(
            f"{path} has {len(np.unique(values))} values that are neither ids nor the soft edges of one object (a "
            "photograph, a JPEG of ids, or ids resized with smoothing?): save ids as PNG, and resize them without "
            "smoothing"
        )
    folder = Path(path).parent
    if folder not in _told:
        _told.add(folder)
        _logger.warning(
            "%s has soft edges: it is cut at half the range, and so are others like it in %s", Path(path).name, folder
        )
    return values >= full / 2
