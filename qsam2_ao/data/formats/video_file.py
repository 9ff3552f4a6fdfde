"""The frames of a video file by their numbers, decoded onwards from where the last one was."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ..frames import count_frames
from ..video import read_frames

#: A frame so little ahead is reached by decoding those between; others by seeking.
_NEAR = 24


class VideoFile:
    """The frames of a video file. Reading some in the order of time decodes each of them once.

    Args:
        path: The file.

    Raises:
        DataError: It has no frames, or cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: tuple[int, NDArray[np.uint8]] | None = None
        self._ahead: Iterator[NDArray[np.uint8]] = iter(())

    def __reduce__(self) -> tuple[type[VideoFile], tuple[Path]]:
        return VideoFile, (self.path,)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self[0].shape[:2]
        return height, width

    @cached_property
    def _length(self) -> int:
        return count_frames(self.path)

    def __len__(self) -> int:
        """As many as the file says."""
        return self._length

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return read_frames(self.path)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """A frame, uint8 ``[height, width, 3]``.

        Raises:
            IndexError: There is no such frame.
            DataError: It cannot be decoded, or the file breaks off before it.
        """
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has no frame {index}: it has {len(self)}")
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        if self._last is not None and 0 < index - self._last[0] <= _NEAR:
            skipped = index - self._last[0] - 1
        else:
            self._ahead, skipped = read_frames(self.path, start=index), 0
        frame = next(islice(self._ahead, skipped, None), None)
        if frame is None:
            raise DataError(f"{self.path} breaks off before frame {index} of {len(self)}; get it again")
        self._last = index, frame
        return frame
