"""Video files and folders of frames, as RGB arrays in and an MP4 out (PyAV, which has FFmpeg in its wheel)."""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, QSAM2Error
from ..files import atomic_write
from ..optional import needed
from .decoding import open_pages, page_rate
from .listing import PICTURE_SUFFIXES, list_pictures
from .pictures import FrameReader, largest_value, to_rgb
from .seeking import decode_from, open_video

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

_logger = logging.getLogger(__name__)
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS)


def read_frames(
    path: str | os.PathLike[str], max_frames: int | None = None, *, start: int = 0
) -> Iterator[NDArray[np.uint8]]:
    """Read the frames of a video file or of a folder of pictures, one at a time.

    Args:
        path: Any video that FFmpeg decodes, a folder whose pictures are the frames, in the natural order of their
            names, or a picture file with pages or an animation (TIFF, GIF, WebP, PNG).
        max_frames: Stop after so many.
        start: Leave out so many frames. In a video file, decoding starts at the key frame before the first one wanted.

    Yields:
        uint8 ``[height, width, 3]``, RGB, all of one size, turned the way that players show them. Every frame that
        is stored comes once, in the order of time, however long it is shown (variable frame rates).

    Raises:
        DataError: The path is absent, holds no frames, cannot be decoded, or has frames of several sizes.
        MissingPackageError: It is a video file, and PyAV is not installed.

    Example:
        >>> sum(1 for _ in read_frames("clip.mp4", max_frames=8))
        8
    """
    path = Path(path)
    frames: Iterator[NDArray[np.uint8]]
    if path.is_dir():
        paths = list_pictures(path)
        frames = map(FrameReader(paths), paths[start:])
    elif path.is_file():
        frames = islice(_read_pages(path), start, None) if is_pages(path) else _decode(path, start)
    else:
        raise DataError(f"{path}: no such video file or folder of frames")
    first: NDArray[np.uint8] | None = None
    for index, frame in enumerate(islice(frames, max_frames), start):
        first = frame if first is None else first
        if frame.shape != first.shape:
            raise DataError(
                f"{path}: frame {index} is {frame.shape[1]} x {frame.shape[0]} pixels, the first is "
                f"{first.shape[1]} x {first.shape[0]}; all must have one size"
            )
        yield frame
    if first is None and start:
        raise DataError(f"{path} breaks off before frame {start}; convert it to MP4 again")
    if first is None:
        raise DataError(f"{path} has no frames; give a video file or a folder of pictures")


def _decode(path: Path, start: int = 0) -> Iterator[NDArray[np.uint8]]:
    av = needed("av")
    try:
        with open_video(path) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream; give a video file or a folder of pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            end, count, told = None, start, False

            def damaged() -> None:
                nonlocal told
                if not told:
                    told = True
                    _logger.warning(
                        "%s is damaged near frame %d: that one and later ones may be wrong, and where frames are "
                        "missing, later ones have other numbers; get the file again",
                        path,
                        count,
                    )

            for frame in decode_from(container, stream, start, damaged):
                end, count = _end(frame, stream), count + 1
                yield _upright(frame.to_ndarray(format="rgb24"), frame)
            if end is not None:
                _check_whole(path, container, stream, count, end)
    except DataError:
        raise
    except (av.error.FFmpegError, ValueError) as error:  # the latter of frames that PyAV has no name for
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be decoded as a video ({reason}); convert it to MP4") from error


def _end(frame: VideoFrame, stream: VideoStream) -> Fraction | None:
    """When the next frame is due, in seconds from the start of the stream."""
    if frame.pts is None or stream.time_base is None:
        return None
    shown = getattr(frame, "duration", 0) * stream.time_base  # old versions of PyAV don't say
    rate = stream.average_rate
    return (frame.pts - (stream.start_time or 0)) * stream.time_base + max(shown, 1 / rate if rate else 0)


def _check_whole(path: Path, container: InputContainer, stream: VideoStream, count: int, end: Fraction) -> None:
    """Warn of a file whose header promises more than there is: FFmpeg takes what was cut off for the end."""
    # Elsewhere than in AVI, whose duration FFmpeg mends, frames that an edit list leaves out are counted too.
    if container.format.name == "avi" and stream.frames - count > max(stream.frames / 20, 3):
        _logger.warning("%s says that it has %d frames, and has %d: it may be cut off", path, stream.frames, count)
        return
    if stream.duration is not None and stream.time_base is not None:
        promised = stream.duration * stream.time_base
    elif container.duration is not None:
        promised = Fraction(container.duration, 10**6)
    else:
        return
    if promised - end > max(promised / 20, Fraction(1, 5)):
        _logger.warning(
            "%s says that it lasts %.2f s, and its pictures end after %.2f s: it may be cut off, unless its sound is "
            "longer",
            path,
            promised,
            end,
        )


def _upright(pixels: NDArray[np.uint8], frame: VideoFrame) -> NDArray[np.uint8]:
    """Turn and mirror a frame as its display matrix says: phones store what the sensor saw, and how it was held."""
    # A frame's side_data and the frame keep each other, and Python collects such garbage after hundreds of frames.
    matrix = needed("av.sidedata.sidedata").SideDataContainer(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # A pixel at (x, y) is shown at (a x + c y, b x + d y); other angles than quarters of a turn are rounded.
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    across, down = (a, d) if abs(a) >= abs(b) else (c, b)
    if abs(a) < abs(b):
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def is_pages(path: Path) -> bool:
    """Whether a clip is a picture file, whose pages are its frames."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def _read_pages(path: Path) -> Iterator[NDArray[np.uint8]]:
    largest = cache(lambda: max(map(largest_value, open_pages(path))))
    for page in open_pages(path):
        yield to_rgb(page, str(path), lambda value: max(value, largest()))


def frame_rate(path: str | os.PathLike[str], default: Fraction | int = 24) -> Fraction:
    """Frames per second of a video file.

    Args:
        path: A video file or a folder of pictures.
        default: What a folder of pictures, or a file that doesn't say, counts as.

    Returns:
        The average rate, or that of an animation's first frame.

    Raises:
        DataError: The file is absent or cannot be decoded.

    Example:
        >>> frame_rate("clip.mp4")
        Fraction(30, 1)
    """
    path = Path(path)
    if path.is_dir():
        return Fraction(default)
    if is_pages(path):
        return Fraction(page_rate(path) or default).limit_denominator(65535)
    av = needed("av")
    try:
        with open_video(path) as container:
            rate = container.streams.video[0].average_rate if container.streams.video else None
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be read as a video ({error.strerror})") from error
    return Fraction(rate or default)


def write_video(path: str | os.PathLike[str], frames: Iterable[NDArray[np.uint8]], fps: Fraction | float = 24) -> None:
    """Write an MP4 that players and browsers show: H.264, or MPEG-4 where FFmpeg was built without it.

    Args:
        path: The file, ending in ``.mp4``; written under a temporary name and renamed when complete.
        frames: uint8 ``[height, width, 3]``, RGB, all of one size. The codecs want even sides: the last
            column or row of an odd side is doubled.
        fps: Frames per second.

    Raises:
        DataError: There are no frames, or one of them has another type or size.
        QSAM2Error: The file cannot be written.

    Example:
        >>> write_video("overlay.mp4", frames, fps=30)
    """
    if fps <= 0:
        raise DataError(f"fps must be positive, got {fps}")
    av = needed("av")
    # The encoder's default preset takes longer than a small model does, for files a few percent smaller.
    codec, settings = (
        ("libx264", {"crf": "20", "preset": "veryfast"}) if "libx264" in av.codecs_available else ("mpeg4", {})
    )
    rate = Fraction(fps).limit_denominator(65535)
    with atomic_write(path) as temporary:
        try:
            with av.open(temporary, "w", format="mp4") as container:
                stream = container.add_stream(codec, rate=rate, options=settings)
                stream.pix_fmt = "yuv420p"
                shape: tuple[int, ...] | None = None
                for index, frame in enumerate(frames):
                    frame = np.asarray(frame)
                    shape = frame.shape if shape is None else shape
                    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
                        raise DataError(
                            f"frame {index} is {frame.dtype} {list(frame.shape)}; a video takes uint8 frames "
                            f"[height, width, 3] of one size, the first was {list(shape)}"
                        )
                    height, width = shape[:2]
                    even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                    if index == 0:
                        stream.height, stream.width = even.shape[:2]
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
                if shape is None:
                    raise DataError(f"{path}: there are no frames to write")
                container.mux(stream.encode())
        except av.error.FFmpegError as error:
            advice = "free some space or choose another place"
            if shape is not None and error.errno not in _OF_THE_DISK:
                advice = f"the encoder may not take {shape[1]} x {shape[0]} pixels: leave the video out, or shrink them"
            raise QSAM2Error(f"cannot write {path}: {error.strerror}; {advice}") from error
