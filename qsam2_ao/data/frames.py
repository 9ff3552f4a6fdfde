"""The frames of a clip on disk as a sequence of which few are in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..optional import needed
from .decoding import count_pages
from .listing import list_pictures
from .seeking import count_packets, open_video
from .video import is_pages, read_frames

CACHE_BYTES = 128 * 2**20


class ClipFrames:
    """Frames of a video file, of a folder of pictures or of a picture file with pages, read when they are asked for.

    Iterating reads each frame once. Going back decodes a few frames again, and keeps them: at most 128 MiB.

    Args:
        path: See :func:`~qsam2_ao.data.video.read_frames`.
        max_frames: Only the first so many.

    Raises:
        DataError: There is no such file, or it has no frames.

    Example:
        >>> frames = ClipFrames("clip.mp4")  # doctest: +SKIP
        >>> for masks in track_frames(model, frames, prompts): ...  # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str], max_frames: int | None = None) -> None:
        self.path, self.max_frames = Path(path), max_frames
        self._cache: dict[int, NDArray[np.uint8]] = {}
        self.first: NDArray[np.uint8] = next(read_frames(path, 1))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.first.shape[0], self.first.shape[1]

    @cached_property
    def _length(self) -> int:
        if self.path.is_dir():
            count = len(list_pictures(self.path))
        else:
            count = count_pages(self.path) if is_pages(self.path) else count_frames(self.path)
        return count if self.max_frames is None else min(count, self.max_frames)

    def __len__(self) -> int:
        """As many as the file says; a damaged one may break off before."""
        return self._length

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return read_frames(self.path, self.max_frames)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """A frame, uint8 ``[height, width, 3]``.

        Raises:
            IndexError: There is no such frame.
            DataError: It cannot be decoded.
        """
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has no frame {index}: it has {len(self)}")
        if index not in self._cache:
            # Decoding runs forwards from a key frame, so that going back one by one is cheap in blocks.
            block = max(1, CACHE_BYTES // self.first.nbytes)
            start = max(0, index - block + 1)
            self._cache = dict(enumerate(read_frames(self.path, index - start + 1, start=start), start))
        if index not in self._cache:
            raise DataError(f"{self.path} breaks off before frame {index}; convert it to MP4 again")
        return self._cache[index]


def count_frames(path: Path) -> int:
    """How many frames a video file has, by its packets, without decoding them.

    Raises:
        DataError: It is no video.
        MissingPackageError: PyAV is not installed.
    """
    av = needed("av")
    try:
        with open_video(path) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream; give a video file or a folder of pictures")
            return count_packets(container, container.streams.video[0])
    except av.error.FFmpegError as error:
        raise DataError(f"{path} cannot be read as a video ({error.strerror})") from error
