"""What the formats share: a video whose files are read when they are asked for, and a data set of such videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...spelling import did_you_mean
from ..annotation import Annotation
from ..decoding import picture_size
from ..pictures import read_rgb


class Frames(Protocol):
    """The frames of a video: uint8 ``[height, width, 3]`` each, RGB.

    Attributes:
        size: Height and width of all of them, found without decoding more than one.
    """

    @property
    def size(self) -> tuple[int, int]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...

    def __iter__(self) -> Iterator[NDArray[np.uint8]]: ...


class PictureFiles(Sequence[NDArray[np.uint8]]):
    """The frames of a folder, read each time they are asked for, checked to be of one size.

    Args:
        paths: The files, at least one.
        read: Reads one file as uint8 ``[height, width, 3]``.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], NDArray[np.uint8]] = read_rgb) -> None:
        self.paths, self._read = tuple(paths), read

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels: those of the first one."""
        return picture_size(self.paths[0])

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.uint8]]: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        if isinstance(index, slice):
            return [self[t] for t in range(*index.indices(len(self)))]
        path = self.paths[index]
        frame = self._read(path)
        check_size(str(path), frame.shape[:2], str(self.paths[0]), self.size)
        return frame


def check_size(source: str, size: tuple[int, ...], other: str, expected: tuple[int, ...]) -> None:
    """Refuse a file that is not of the size of another.

    Args:
        source: The file.
        size: Its height and width in pixels.
        other: The other.
        expected: Its height and width.

    Raises:
        DataError: They differ.
    """
    if size != expected:
        raise DataError(
            f"{source} is {size[1]} x {size[0]} pixels, but {other} is {expected[1]} x {expected[0]}; resize one of "
            "them"
        )


class Annotations(Protocol):
    """The masks of one video.

    Attributes:
        annotated: See :class:`~qsam2_ao.data.types.VideoSequence`.
        object_ids: The objects; may read all masks.
    """

    @property
    def annotated(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def object_ids(self) -> tuple[int, ...]: ...  # noqa: D102

    def read(self, t: int) -> Annotation:
        """The masks of an annotated frame."""
        ...


@dataclass(frozen=True)
class Video:
    """A video, or a picture as one frame, with its masks: what an opened data set gives.

    Attributes:
        name: In the data set.
        frames: ``frames[t]`` is uint8 ``[height, width, 3]``, RGB.
        frame_names: Of the files, without their endings.
        annotations: Where the masks are.
        overlapping: Whether the format holds a mask for each object, so that they may overlap; else one map of ids.
        requested: The frames of which the benchmark wants masks; ``None`` for all.
    """

    name: str
    frames: Frames
    frame_names: tuple[str, ...]
    annotations: Annotations
    overlapping: bool = False
    requested: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.frames)

    @cached_property
    def object_ids(self) -> tuple[int, ...]:
        """The objects, without void; for maps of ids all of them are read once."""
        return self.annotations.object_ids

    @property
    def annotated(self) -> tuple[int, ...]:
        """The frames of which anything is known, ascending; reads no mask."""
        return self.annotations.annotated

    def annotation(self, t: int) -> Annotation | None:
        """What is known of a frame.

        Args:
            t: The frame; negative ones count from the end.

        Returns:
            Its objects' masks; ``None`` where nothing is known.

        Raises:
            IndexError: There is no such frame.
            DataError: A file is damaged, of another size than the frames, or does not hold masks; it is named.
        """
        count = len(self.frames)
        if not -count <= t < count:
            raise IndexError(f"{self.name} has no frame {t}: it has {count}")
        t %= count
        if t not in self.annotated:
            return None
        found = self.annotations.read(t)
        check_size(found.source, found.size, f"the first frame of {self.name}", self.frames.size)
        return found


@dataclass(frozen=True)
class Still:
    """The masks of a picture, read once.

    Attributes:
        load: Reads them.
    """

    load: Callable[[], Annotation]

    @property
    def annotated(self) -> tuple[int, ...]:
        """The one frame."""
        return (0,)

    @cached_property
    def object_ids(self) -> tuple[int, ...]:
        """The objects that the picture has."""
        return tuple(self._found.masks)

    @cached_property
    def _found(self) -> Annotation:
        return self.load()

    def read(self, t: int) -> Annotation:
        """The masks."""
        return self._found


@dataclass(frozen=True)
class NoAnnotations:
    """What is known of pictures without masks."""

    annotated: tuple[int, ...] = ()
    object_ids: tuple[int, ...] = ()

    def read(self, t: int) -> Annotation:
        """Never called, since no frame is annotated."""
        raise DataError("there are no masks")


def open_picture_with(name: str, path: Path, load: Callable[[], Annotation], *, overlapping: bool) -> Video:
    """A picture with masks.

    Args:
        name: In the data set.
        path: The picture.
        load: Reads its masks.
        overlapping: See :class:`Video`.
    """
    return Video(name, PictureFiles([path]), (path.stem,), Still(load), overlapping)


@dataclass(frozen=True)
class PictureOpener:
    """Opens pictures with masks, each in a file of its own.

    Attributes:
        images: Name -> picture.
        loads: Name -> what reads its masks; picklable.
        overlapping: See :class:`Video`.
    """

    images: Mapping[str, Path]
    loads: Mapping[str, Callable[[], Annotation]]
    overlapping: bool

    def __call__(self, name: str) -> Video:
        """Open one."""
        return open_picture_with(name, self.images[name], self.loads[name], overlapping=self.overlapping)


#: From a video's name in a data set to the video.
Opener: TypeAlias = Callable[[str], Video]


@dataclass(frozen=True)
class Dataset(Sequence[Video]):
    """Videos, or pictures, of one data set, each opened when it is asked for.

    Attributes:
        format: The layout's name, as ``open_dataset`` takes it.
        root: The folder.
        names: The videos, in order.
        opener: Opens one; picklable, so that a data loader's workers can have it.
        split: Which part of the data set it is; ``None`` where it has none, or all of them.
        pictures: Whether every video is a single picture.
        has_masks: Whether there are annotations; pictures for calibration have none.
    """

    format: str
    root: Path
    names: tuple[str, ...]
    opener: Opener = field(repr=False)
    split: str | None = None
    pictures: bool = False
    has_masks: bool = True

    def __len__(self) -> int:
        """How many videos."""
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Video: ...

    @overload
    def __getitem__(self, index: slice) -> Dataset: ...

    def __getitem__(self, index: int | slice) -> Video | Dataset:
        if isinstance(index, slice):
            return self._with(self.names[index])
        return self.opener(self.names[index])

    def __iter__(self) -> Iterator[Video]:
        return map(self.opener, self.names)

    def select(self, names: Sequence[str]) -> Dataset:
        """Some of its videos, in the order of ``names``.

        Raises:
            DataError: It has no video of one of the names.
        """
        known = set(self.names)
        if missing := [name for name in names if name not in known]:
            part = "" if self.split is None else f" in the split {self.split}"
            raise DataError(f"{self.root} has no sequence {missing[0]!r}{part}{did_you_mean(missing[0], self.names)}")
        return self._with(tuple(names))

    def labelled(self) -> Dataset:
        """Itself, where there are masks to learn from or to score by.

        Raises:
            DataError: There are none.
        """
        if not self.has_masks:
            raise DataError(
                f'{self.root} has pictures, but no masks that are known here; see the page "Data formats", or name its '
                "format"
            )
        return self

    def _with(self, names: tuple[str, ...]) -> Dataset:
        return Dataset(self.format, self.root, names, self.opener, self.split, self.pictures, self.has_masks)
