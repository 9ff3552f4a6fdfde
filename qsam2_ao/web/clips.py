"""What users have opened: each picture or clip in a folder of its own, for as long as it is used."""

from __future__ import annotations

import io
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.decoding import count_pages
from ..data.frames import ClipFrames
from ..data.listing import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from ..data.pictures import read_rgb
from ..data.video import read_frames
from ..errors import DataError
from ..segmentation import save_label_map

MOST_CLIPS = 24
"""Of all users together; the one that was not used for longest makes room."""
MOST_BYTES = 2**31
"""Of all pictures that are kept in memory; likewise."""
IDLE_SECONDS = 3600.0
_READ_ALONG, _READ_ALONG_BYTES = 16, 2**28


@dataclass
class Tracking:
    """A clip being tracked, or tracked.

    Attributes:
        total: Frames to track.
        done: Frames tracked.
        frames: Frame -> model's number -> its milliseconds and its mean IoU with the first model.
        error: Why it stopped; None where it did not.
        cancelled: Set to stop it.
    """

    total: int
    done: int = 0
    frames: dict[int, list[dict[str, float | None]]] = field(default_factory=dict)
    error: str | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        frames = {str(frame): row for frame, row in list(self.frames.items())}
        return {"total": self.total, "done": self.done, "error": self.error, "frames": frames}


@dataclass
class Clip:
    """A picture or clip that a user has opened.

    Attributes:
        id: Nobody guesses it: who knows it may see the clip.
        name: What the user calls it.
        folder: For its file and masks.
        length: How many frames are opened.
        size: Width and height in pixels.
        kept: The frames, where they are in memory: uint8 ``[height, width, 3]`` each; empty for a file.
        source: The video file, where it is one.
        stored: How many frames the file has: more than are opened, where it is a long one.
        tracking: What was tracked last.
        used: When it was asked for last, in seconds of the monotonic clock.
        asked: How many questions there were about masks.
    """

    id: str
    name: str
    folder: Path
    length: int
    size: tuple[int, int]
    kept: Sequence[NDArray[np.uint8]] = ()
    source: Path | None = None
    stored: int = 0
    tracking: Tracking | None = None
    used: float = field(default_factory=time.monotonic)
    asked: int = 0
    _kept_of: int = 0
    _near: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def picture(self) -> bool:
        """Whether it is a single picture."""
        return self.source is None and self.length == 1

    @property
    def kept_bytes(self) -> int:
        """What its frames take in memory."""
        return sum(frame.nbytes for frame in self.kept)

    def keep_masks(self, asked: int, ids: Sequence[NDArray[np.uint8]]) -> None:
        """Keep a picture's masks for downloads, unless those of a later question are there.

        Args:
            asked: Number of the question.
            ids: Of each model, ``[height, width]``.
        """
        with self._lock:
            if asked > self._kept_of:
                self._kept_of = asked
                for number, each in enumerate(ids):
                    save_label_map(each, self.mask_path(number, 0))

    def frame(self, index: int) -> NDArray[np.uint8]:
        """A frame; those after it are read along, since they are often asked for next.

        Raises:
            DataError: There is none of that number, or it cannot be decoded.
        """
        if not 0 <= index < self.length:
            raise DataError(f"there is no frame {index}: the clip has {self.length}")
        if self.source is None:
            return self.kept[index]
        with self._lock:
            if index not in self._near:
                along = min(_READ_ALONG, max(1, _READ_ALONG_BYTES // (3 * self.size[0] * self.size[1])))
                self._near = dict(enumerate(self._read(index, along), index))
            return self._near[index]

    def frames_from(self, begin: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Frames with their numbers, each read once."""
        frames = iter(self.kept[begin:]) if self.source is None else self._read(begin)
        return enumerate(islice(frames, self.length - begin), begin)

    def _read(self, begin: int, count: int | None = None) -> Iterator[NDArray[np.uint8]]:
        assert self.source is not None
        with _named(self.source, self.name):
            yield from read_frames(self.source, count, start=begin)

    def mask_path(self, model: int, frame: int) -> Path:
        """Where the masks of a frame are kept."""
        return self.folder / "masks" / str(model) / f"{frame:05d}.png"


class ClipStore:
    """All that is open.

    Args:
        max_frames: Of longer clips, only the first so many are opened.
    """

    def __init__(self, max_frames: int = 300) -> None:
        self.root = Path(mkdtemp(prefix="qsam2-web-"))
        self._max_frames = max_frames
        self._clips: dict[str, Clip] = {}
        self._lock = threading.Lock()

    def get(self, clip_id: str) -> Clip:
        """An open clip.

        Raises:
            KeyError: There is none.
        """
        with self._lock:
            clip = self._clips[clip_id]
            clip.used = time.monotonic()
            return clip

    def open_file(self, name: str, write: Callable[[Path], object]) -> Clip:
        """Open an upload.

        Args:
            name: The file's name, of which nothing but the ending is used for a path.
            write: Writes the file.

        Raises:
            DataError: It is no picture or video, or is damaged.
        """
        suffix = Path(name).suffix.lower()
        if suffix not in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES):
            raise DataError(f"{name[:80]!r} has no ending of a picture or video; open a .jpg, .png, .mp4, .mov, ...")
        folder, told = Path(mkdtemp(dir=self.root)), Path(name).name[:80]
        path = folder / f"upload{suffix}"
        try:
            with _named(path, told):
                write(path)
                if suffix in PICTURE_SUFFIXES and count_pages(path) == 1:
                    return self._add(_in_memory(told, folder, [read_rgb(path)]))
                frames = ClipFrames(path)
                height, width = frames.first.shape[:2]
                length = min(len(frames), self._max_frames)
                clip = Clip(_new_id(), told, folder, length, (width, height), source=path, stored=len(frames))
                return self._add(clip)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def open_frames(self, name: str, frames: Sequence[NDArray[np.uint8]]) -> Clip:
        """Open what is in memory."""
        return self._add(_in_memory(name, Path(mkdtemp(dir=self.root)), frames))

    def _add(self, clip: Clip) -> Clip:
        with self._lock:
            now = time.monotonic()
            old = [each for each in self._clips.values() if now - each.used > IDLE_SECONDS]
            by_use = sorted((each for each in self._clips.values() if each not in old), key=lambda each: each.used)
            kept = clip.kept_bytes + sum(each.kept_bytes for each in by_use)
            while by_use and (len(by_use) >= MOST_CLIPS or kept > MOST_BYTES):
                kept -= by_use[0].kept_bytes
                old.append(by_use.pop(0))
            for each in old:
                del self._clips[each.id]
            self._clips[clip.id] = clip
        for each in old:
            self._discard(each)
        return clip

    def close(self, clip_id: str) -> None:
        """Forget a clip and its files; nothing happens where there is none."""
        with self._lock:
            clip = self._clips.pop(clip_id, None)
        if clip is not None:
            self._discard(clip)

    def _discard(self, clip: Clip) -> None:
        if clip.tracking is not None:
            clip.tracking.cancelled.set()
        shutil.rmtree(clip.folder, ignore_errors=True)

    def cancel_all(self) -> None:
        """Stop all trackings at their next frame."""
        with self._lock:
            for clip in self._clips.values():
                if clip.tracking is not None:
                    clip.tracking.cancelled.set()

    def close_all(self) -> None:
        """Forget everything."""
        with self._lock:
            clips, self._clips = list(self._clips.values()), {}
        for clip in clips:
            self._discard(clip)
        shutil.rmtree(self.root, ignore_errors=True)


@contextmanager
def _named(path: Path, name: str) -> Iterator[None]:
    """Errors about a file say what its user calls it, and no folder of the server."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(str(path), name)) from error


def _new_id() -> str:
    return secrets.token_urlsafe(16)


def _in_memory(name: str, folder: Path, frames: Sequence[NDArray[np.uint8]]) -> Clip:
    height, width = frames[0].shape[:2]
    return Clip(_new_id(), name, folder, len(frames), (width, height), kept=frames, stored=len(frames))


def jpeg_bytes(frame: NDArray[np.uint8]) -> bytes:
    """A frame as a browser shows it."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
