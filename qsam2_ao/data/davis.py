"""Videos with masks in the layout of DAVIS: ``JPEGImages/<sequence>/*.jpg`` and
``Annotations/<sequence>/*.png``.

A folder between (``JPEGImages/480p/<sequence>``), as DAVIS 2017 has it, is found by itself. Frames and masks
are read when they are asked for. What a mask's values mean is said in :mod:`qsam2_ao.data.masks`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .listing import list_pictures, natural_key
from .masks import VOID, MaskReader
from .pictures import FrameReader


class LazyPictures(Sequence[Any]):
    """Pictures that are read each time they are asked for, checked to be of one size.

    Args:
        paths: The files; ``None`` where there is none, which reads as ``None``.
        read: Reads one file.
        size: Height and width that every picture must have.
    """

    def __init__(
        self,
        paths: Sequence[Path | None],
        read: Callable[[Path], NDArray[np.uint8]],
        size: tuple[int, int],
    ) -> None:
        self.paths, self._read, self._size = tuple(paths), read, size

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def present(self) -> list[int]:
        """Which of them there are, without reading any."""
        return [index for index, path in enumerate(self.paths) if path is not None]

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8] | None: ...

    @overload
    def __getitem__(self, index: slice) -> LazyPictures: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | LazyPictures | None:
        if isinstance(index, slice):
            return LazyPictures(self.paths[index], self._read, self._size)
        path = self.paths[index]
        if path is None:
            return None
        picture = self._read(path)
        if picture.shape[:2] != self._size:
            (height, width), (expected_height, expected_width) = picture.shape[:2], self._size
            raise DataError(
                f"{path} is {width} x {height} pixels, but the sequence's first frame is "
                f"{expected_width} x {expected_height}; resize one of them"
            )
        return picture


@dataclass(frozen=True)
class DavisSequence:
    """One sequence of a DAVIS-style folder.

    Attributes:
        name: The sequence's folder.
        frames: ``frames[t]`` is uint8 ``[height, width, 3]``, RGB.
        masks: ``masks[t]`` is uint8 ``[height, width]`` of object ids and 255 for void, or ``None`` for a frame
            without annotation.
    """

    name: str
    frames: LazyPictures
    masks: LazyPictures

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.frames)

    @cached_property
    def object_ids(self) -> tuple[int, ...]:
        """The ids that occur in any annotation, without void; reads all of them once."""
        ids = {int(i) for mask in self.masks if mask is not None for i in np.unique(mask)}
        return tuple(sorted(ids - {0, VOID}))


def read_davis(
    root: str | os.PathLike[str], names: Sequence[str] | None = None, *, resolution: str | None = None
) -> list[DavisSequence]:
    """Open the sequences of a DAVIS-style folder.

    Args:
        root: The folder that holds ``JPEGImages`` and ``Annotations``.
        names: The sequences to open, in this order; all that have annotations by default.
        resolution: The folder between ``JPEGImages`` and the sequences; by default "480p" or the only one.

    Returns:
        The sequences. A frame may have no annotation; a sequence needs at least one.

    Raises:
        DataError: A folder or file is missing, an annotation has no frame, or there is nothing to read. What
            is wrong inside a file (damaged, colours instead of ids, another size) shows when the file is
            read, and names it.

    Example:
        >>> sequence = read_davis("DAVIS", ["bear"])[0]
        >>> sequence.frames[0].shape, sequence.object_ids
        ((480, 854, 3), (1,))
    """
    images, annotations = (_sequences_folder(Path(root) / kind, resolution) for kind in ("JPEGImages", "Annotations"))
    if names is None:
        names = sorted(
            (path.name for path in annotations.iterdir() if path.is_dir() and path.name[0] != "."), key=natural_key
        )
    if not names:
        raise DataError(f"{annotations} has no sequences; each is a folder of PNG files")
    return [_open_sequence(images / name, annotations / name) for name in names]


def _sequences_folder(folder: Path, resolution: str | None) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; DAVIS has JPEGImages and Annotations side by side")
    if resolution is not None:
        if not (folder / resolution).is_dir():
            raise DataError(f"{folder / resolution}: no such folder; choose another resolution")
        return folder / resolution
    between = sorted(
        child.name for child in folder.iterdir() if child.is_dir() and any(p.is_dir() for p in child.iterdir())
    )
    if not between:
        return folder
    if len(between) > 1 and "480p" not in between:
        raise DataError(f"{folder} holds several resolutions ({', '.join(between)}); choose one of them")
    return folder / ("480p" if "480p" in between else between[0])


def _open_sequence(images: Path, annotations: Path) -> DavisSequence:
    frame_paths, mask_paths = list_pictures(images), list_pictures(annotations)
    if not frame_paths:
        raise DataError(f"{images} has no frames; put its pictures there")
    if not mask_paths:
        raise DataError(f"{annotations} has no masks; at least one frame must be annotated")
    by_stem = {path.stem: path for path in mask_paths}
    if strays := sorted(by_stem.keys() - {path.stem for path in frame_paths}):
        raise DataError(f"{by_stem[strays[0]]} has no frame of that name in {images}; add it or remove this")
    read = FrameReader(frame_paths)
    height, width = read(frame_paths[0]).shape[:2]
    return DavisSequence(
        images.name,
        LazyPictures(frame_paths, read, (height, width)),
        LazyPictures([by_stem.get(path.stem) for path in frame_paths], MaskReader(mask_paths), (height, width)),
    )
