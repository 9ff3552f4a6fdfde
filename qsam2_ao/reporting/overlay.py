"""Pictures of masks over images, alone and side by side."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..data.pictures import to_rgb
from ..errors import DataError
from ..files import atomic_write

_GOLDEN = 0.618033988749895
_BACKDROP = (24, 24, 27)


def colour(object_id: int) -> tuple[int, int, int]:
    """A bright colour for an object: the same for the same id, far apart for ids that follow each other.

    Args:
        object_id: 1 or more.

    Returns:
        RGB, 0 to 255.

    Example:
        >>> colour(1)
        (255, 77, 87)
    """
    # Steps of the golden ratio never come back to a hue; every eighth turn changes the lightness instead.
    hue = (0.99 + (object_id - 1) * _GOLDEN) % 1.0
    lightness = (0.65, 0.45, 0.8)[((object_id - 1) // 8) % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def _as_image(image: Image.Image | NDArray[np.uint8]) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return picture if picture.mode == "RGB" else Image.fromarray(to_rgb(picture, "the image"))


def draw_masks(
    image: Image.Image | NDArray[np.uint8],
    masks: Mapping[int, NDArray[np.bool_]] | NDArray[np.integer],
    *,
    opacity: float = 0.45,
    contour: int | None = None,
) -> Image.Image:
    """Tint every object of an image in its own colour and draw its outline.

    Args:
        image: RGB picture, or uint8 ``[height, width, 3]``; left as it is.
        masks: A bool ``[height, width]`` mask for each object id, or one integer ``[height, width]`` map of
            ids with 0 for the background. Where masks overlap, the later one is on top.
        opacity: Of the tint, 0 (none) to 1 (the colour alone).
        contour: Width of the outline in pixels, 0 for none; by default it grows with the image.

    Returns:
        An RGB picture of the image's size.

    Raises:
        DataError: A mask has another size than the image.

    Example:
        >>> picture = draw_masks(np.zeros((4, 4, 3), np.uint8), {1: np.ones((4, 4), bool)}, opacity=1)
        >>> picture.getpixel((0, 0)) == colour(1)
        True
    """
    canvas = _as_image(image).copy()
    if not isinstance(masks, Mapping):
        masks = {i: masks == i for i in _ids(masks)}
    if contour is None:
        contour = max(1, round(min(canvas.size) / 180))
    for object_id, mask in masks.items():
        if mask.shape != (canvas.height, canvas.width):
            raise DataError(
                f"the mask of object {object_id} is {mask.shape} (height, width) but the image is "
                f"{(canvas.height, canvas.width)}; resize one of them"
            )
        mask = mask.astype(bool, copy=False)
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        if len(rows) == 0:
            continue
        left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        part = mask[top:bottom, left:right]
        canvas.paste(colour(object_id), (left, top, right, bottom), _stencil(part, round(255 * opacity)))
        if contour:
            edge = part & ~_eroded(part, contour)
            canvas.paste(colour(object_id), (left, top, right, bottom), _stencil(edge, 255))
    return canvas


def _ids(masks: NDArray[np.integer]) -> list[int]:
    """The ids in a map, without 0."""
    if masks.dtype == np.uint8:  # counted, which is faster than to sort
        return [i for i, count in enumerate(Image.fromarray(masks).histogram()) if i and count]
    return [int(i) for i in np.unique(masks) if i != 0]


def _stencil(mask: NDArray[np.bool_], value: int) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * np.uint8(value))


def _eroded(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The pixels of a mask that are not within ``width`` pixels of its outside, or of the array's border.

    The square around a pixel is a row of columns, and a run of 2n pixels is two of n: the cost grows with the logarithm
    of the width.
    """
    inside = np.pad(mask, width)
    for axis in (0, 1):
        length, side = 1, 2 * width + 1
        while length < side:
            step = min(length, side - length)
            inside = inside[:-step] & inside[step:] if axis == 0 else inside[:, :-step] & inside[:, step:]
            length += step
    return inside


def draw_prompts(
    image: Image.Image | NDArray[np.uint8],
    points: Sequence[tuple[float, float, int]] = (),
    boxes: Sequence[tuple[float, float, float, float]] = (),
    *,
    radius: int | None = None,
) -> Image.Image:
    """Mark clicks (green: inside, red: outside) and boxes on a picture.

    Args:
        image: RGB picture, or uint8 ``[height, width, 3]``; left as it is.
        points: ``(x, y, label)`` in pixels with label 1 (inside the object) or 0 (outside).
        boxes: ``(x0, y0, x1, y1)`` in pixels.
        radius: Of a click, in pixels; by default a ninetieth of the picture.

    Returns:
        An RGB picture of the image's size.
    """
    canvas = _as_image(image).copy()
    pen = ImageDraw.Draw(canvas)
    radius = radius or max(2, round(min(canvas.size) / 90))
    for box in boxes:
        pen.rectangle(tuple(box), outline="white", width=max(1, radius // 3))
    for x, y, label in points:
        corners = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(corners, fill="lime" if label else "red", outline="white", width=max(1, radius // 3))
    return canvas


def side_by_side(
    pictures: Sequence[Image.Image],
    titles: Sequence[str],
    *,
    columns: int | None = None,
    min_width: int = 240,
) -> Image.Image:
    """Arrange pictures in rows, each under its title.

    Args:
        pictures: One or more, shown at the first one's size.
        titles: One for each picture; "" leaves the line empty. One that is wider than its picture loses its middle.
        columns: Pictures in a row; by default all.
        min_width: Smaller pictures are enlarged to this width in pixels, without smoothing.

    Returns:
        An RGB picture.

    Raises:
        DataError: No picture, or not one title for each.

    Example:
        >>> side_by_side([Image.new("RGB", (96, 96))] * 3, ["float", "4 bits", "2 bits"]).size
        (744, 266)
    """
    if not pictures or len(pictures) != len(titles):
        raise DataError(f"got {len(pictures)} pictures and {len(titles)} titles; give one title for each picture")
    columns = columns or len(pictures)
    width, height = pictures[0].size
    enlarge = max(1.0, min_width / width)
    width, height = round(width * enlarge), round(height * enlarge)
    gap, line = 6, 20
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap)), _BACKDROP)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, y = gap + i % columns * (width + gap), i // columns * (height + line + gap)
        pen.text((x + 2, y + 2), shortened(title, width - 4, font.getlength), fill="white", font=font)
        # Enlarged pixels stay sharp; what is made smaller must not lose its thin lines.
        how = Image.Resampling.LANCZOS if picture.width > width else Image.Resampling.NEAREST
        sheet.paste(picture.convert("RGB").resize((width, height), how), (x, y + line))
    return sheet


def shortened(text: str, width: float, length: Callable[[str], float]) -> str:
    """A text without its middle, where it would be too wide.

    Args:
        text: The text.
        width: What it may take.
        length: What a text takes.

    Example:
        >>> shortened("sam2.1_hiera_tiny-w4a8: 97 %", 20, len)
        'sam2.1_hie…4a8: 97 %'
    """
    shown, left = text, len(text)
    while left > 2 and length(shown) > width:
        left -= 1
        shown = f"{text[: (left + 1) // 2]}…{text[len(text) - left // 2 :]}"
    return shown


def save_picture(picture: Image.Image, path: str | os.PathLike[str], **options: Any) -> Path:
    """Write a picture in the format of the path's ending, all of it or nothing.

    Args:
        picture: What to write.
        path: For example ``"overlay.png"``; its folder is made where it does not exist.
        options: As for Pillow's ``save``.

    Returns:
        The path.

    Raises:
        DataError: The ending is not one of a picture format.
        QSAM2Error: The file cannot be written.
    """
    path = Path(path)
    Image.preinit()  # the usual formats; Pillow has fifty others, whose import takes longer than writing a picture
    suffix = path.suffix.lower()
    if (Image.EXTENSION.get(suffix) or Image.registered_extensions().get(suffix)) not in Image.SAVE:
        raise DataError(f"{path}: cannot write pictures of the type {path.suffix!r}; use .png or .jpg")
    with atomic_write(path) as temporary:
        picture.save(temporary, compress_level=3, **options)  # of PNG: half the time of 6, and 4 % larger
    return path
