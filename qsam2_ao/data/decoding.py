"""Opening picture files: of any format, of a stated size at most, with errors that name the file."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ..errors import DataError, MissingPackageError
from ..optional import needed

#: The largest picture that is read, in pixels, unless :func:`pixel_limit` or the environment variable
#: QSAM2_MAX_PIXELS says otherwise: 16,384 x 16,384, which take 0.8 GB as RGB.
MAX_PIXELS = 1 << 28

#: Whether the file has 16 bits a channel, in the ``info`` of a picture: for colours, Pillow keeps the upper 8.
SIXTEEN_BITS = "qsam2_sixteen_bits"
#: Whether its greys of 16 bits are stored as negatives, which Pillow turns for 8 bits alone.
WHITE_IS_ZERO = "qsam2_white_is_zero"

#: Pictures of more pixels are decoded one at a time, without Pillow's limit of 89 megapixels, which is a global value.
_LARGE = 1 << 26
_OPENING = threading.Lock()
_limit: ContextVar[int | None] = ContextVar("qsam2_pixel_limit", default=None)
#: What may be in a file, whatever its name: Pillow would also hand PostScript to a program, for example.
_FORMATS = ("JPEG", "MPO", "JPEG2000", "PNG", "WEBP", "AVIF", "HEIF", "BMP", "DIB", "GIF", "TIFF", "PPM", "ICO")
#: What follows the length and "ftyp" at the beginning of a file of that kind.
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
#: TIFF's tag for what a page is, and its bits for a smaller copy of another page and for a page's transparency.
_SUBFILE_TYPE, _REDUCED, _TRANSPARENCY = 254, 1, 4
_PHOTOMETRIC = 262


def max_pixels() -> int:
    """The size limit that is in force, in pixels: that of :func:`pixel_limit`, of QSAM2_MAX_PIXELS, or MAX_PIXELS.

    Raises:
        DataError: QSAM2_MAX_PIXELS is not a positive integer.

    Example:
        >>> max_pixels()
        268435456
    """
    if (limit := _limit.get()) is not None:
        return limit
    text = os.environ.get("QSAM2_MAX_PIXELS", "")
    if not text:
        return MAX_PIXELS
    if not text.strip().isdecimal() or int(text) == 0:
        raise DataError(f"QSAM2_MAX_PIXELS={text}: it must be a positive number of pixels, for example 500000000")
    return int(text)


@contextmanager
def pixel_limit(pixels: int) -> Iterator[None]:
    """Read pictures of up to so many pixels in this block, whatever in the package reads them.

    It holds in this thread or asynchronous task. For other threads and processes, set the environment variable
    QSAM2_MAX_PIXELS.

    Args:
        pixels: Width times height.

    Raises:
        DataError: It is no positive integer.

    Example:
        >>> with pixel_limit(10**9):
        ...     max_pixels()
        1000000000
    """
    if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1:
        raise DataError(f"the limit must be a positive number of pixels, for example 500000000, not {pixels!r}")
    token = _limit.set(pixels)
    try:
        yield
    finally:
        _limit.reset(token)


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Decode a file with one picture in it and turn it the way that viewers show it (EXIF orientation).

    Args:
        path: The file. Thumbnails, and the second picture that some phones and cameras add, are left alone.

    Returns:
        The picture in the file's own mode.

    Raises:
        DataError: The file is absent, damaged, larger than :func:`max_pixels`, or holds pages or an animation.
        MissingPackageError: It is HEIC, and pillow-heif is not installed.

    Example:
        >>> open_picture("scan.tif").mode  # doctest: +SKIP
        'I;16'
    """
    pages = _pages(Path(path), single=True)
    try:
        picture = next(pages)
        ImageOps.exif_transpose(picture, in_place=True)
        return picture
    except (DataError, MissingPackageError):
        raise
    except Exception as error:  # whatever a decoder or a broken EXIF block raises
        raise _unreadable(Path(path), error) from error
    finally:
        pages.close()


def picture_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of the picture that :func:`open_picture` gives, without decoding it.

    Args:
        path: The file.

    Raises:
        DataError: The file is absent or damaged.
        MissingPackageError: It is HEIC, and pillow-heif is not installed.

    Example:
        >>> picture_size("frames/00000.jpg")
        (96, 96)
    """
    with _header(Path(path)) as picture:
        try:
            sideways = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except Exception as error:
            raise _unreadable(Path(path), error) from error
        width, height = picture.size
        if sideways and isinstance(picture, TiffImagePlugin.TiffImageFile):  # some versions of Pillow turn it already
            stored = picture.tag_v2[ExifTags.Base.ImageWidth], picture.tag_v2[ExifTags.Base.ImageLength]
            sideways = picture.size == stored
        return (width, height) if sideways else (height, width)


def open_pages(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Decode the pages of a TIFF or the frames of an animated GIF, WebP, PNG or AVIF, one at a time.

    Args:
        path: The file; one with a single picture has one page.

    Yields:
        Each picture, valid until the next one is asked for.

    Raises:
        DataError: As :func:`open_picture` does.
        MissingPackageError: It is HEIC, and pillow-heif is not installed.

    Example:
        >>> len(list(open_pages("stack.tif")))  # doctest: +SKIP
        40
    """
    try:
        for page in _pages(Path(path)):
            yield ImageOps.exif_transpose(page)
    except (DataError, MissingPackageError):
        raise
    except Exception as error:
        raise _unreadable(Path(path), error) from error


def count_pages(path: str | os.PathLike[str]) -> int:
    """How many pictures :func:`open_pages` gives, without decoding them where the file says so.

    Args:
        path: The file.

    Raises:
        DataError: The file is absent or damaged.

    Example:
        >>> count_pages("stack.tif")  # doctest: +SKIP
        40
    """
    with _header(Path(path)) as picture:
        try:
            return len(_indices(picture))
        except Exception as error:
            raise _unreadable(Path(path), error) from error


def page_rate(path: str | os.PathLike[str]) -> float | None:
    """Frames per second of an animation, from how long its first frame is shown.

    Args:
        path: The file.

    Returns:
        The rate; None where the file does not say.

    Raises:
        DataError: As :func:`open_picture` does.

    Example:
        >>> page_rate("clip.gif")  # doctest: +SKIP
        10.0
    """
    duration = next(iter(open_pages(path))).info.get("duration")
    return 1000 / float(duration) if isinstance(duration, (int, float)) and duration > 0 else None


def _pages(path: Path, *, single: bool = False) -> Generator[Image.Image, None, None]:
    limit = max_pixels()
    with _header(path) as picture:
        indices = _indices(picture)
        if single and len(indices) > 1:
            raise DataError(
                f"{path} holds {len(indices)} pictures (pages, or an animation): give it where a video is wanted, or "
                "save each picture in a file of its own"
            )
        for index in indices:
            if index:
                picture.seek(index)
            width, height = picture.size
            if width * height > limit:
                raise DataError(
                    f"{path} is {width} x {height}, {width * height / 1e6:.0f} megapixels, and the limit is "
                    f"{limit / 1e6:.0f}: give --max-pixels {width * height} (in Python, pixel_limit; anywhere, the "
                    f"environment variable QSAM2_MAX_PIXELS={width * height}) if the file is to be trusted and there "
                    "is the memory, or reduce the picture"
                )
            wide = any(";16" in str(tile[3]) for tile in picture.tile) if hasattr(picture, "tile") else False
            with _without_pillows_limit() if width * height > _LARGE else nullcontext():
                picture.load()
            picture.info[SIXTEEN_BITS] = wide
            picture.info[WHITE_IS_ZERO] = wide and _tag(picture, _PHOTOMETRIC, 1) == 0
            yield picture


def _indices(picture: Image.Image) -> list[int]:
    """Which of the pictures in a file are pictures of their own."""
    if picture.format in ("MPO", "HEIF", "ICO"):  # beside the photograph there is a preview, or depths
        return [picture.tell()]
    indices = list(range(getattr(picture, "n_frames", 1)))
    if picture.format == "TIFF" and len(indices) > 1:
        kinds = {}
        for index in indices:
            picture.seek(index)
            kinds[index] = _tag(picture, _SUBFILE_TYPE, 0)
        picture.seek(0)
        return [index for index in indices if index == 0 or not kinds[index] & (_REDUCED | _TRANSPARENCY)]
    return indices


def _tag(picture: Image.Image, tag: int, default: int) -> int:
    """A number in a TIFF's page; the default for other formats."""
    tags = getattr(picture, "tag_v2", {})
    return int(tags.get(tag, default))


def _header(path: Path) -> Image.Image:
    """Open without decoding, and without Pillow's own limit, which is no argument."""
    try:
        return _identify(path)
    except UnidentifiedImageError as error:
        brand, tiff = _brand(path)
        if tiff:
            raise DataError(
                f"{path} is a TIFF of a kind that Pillow does not read (fractions of 16 or 64 bits, or of colours?); "
                "save it with 8 or 16 bits a channel"
            ) from error
        if brand in _AVIF_BRANDS:
            raise DataError(f"{path} is AVIF, which this Pillow does not read; install pillow>=11.3") from error
        if brand not in _HEIF_BRANDS:
            raise _unreadable(path, error) from error
    except Exception as error:
        raise _unreadable(path, error) from error
    needed("pillow_heif").register_heif_opener()
    try:
        return _identify(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def _identify(path: Path) -> Image.Image:
    Image.init()
    with _without_pillows_limit():
        return Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN])


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    with _OPENING:
        kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = kept


def _brand(path: Path) -> tuple[bytes, bool]:
    """What kind of file of MPEG's it is, files of other kinds have none; and whether it is a TIFF."""
    with open(path, "rb") as file:
        beginning = file.read(12)
    return beginning[8:] if beginning[4:8] == b"ftyp" else b"", beginning[:4] in (b"II*\0", b"MM\0*")


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such file")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return DataError(f"{path} cannot be read as a picture ({reason}); get or convert it again")
