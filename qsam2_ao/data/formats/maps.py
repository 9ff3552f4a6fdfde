"""Videos whose masks are maps of ids: ``JPEGImages/VIDEO/*.jpg`` and ``Annotations/VIDEO/*.png``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..annotation import Annotation
from ..listing import list_folders, list_pictures
from ..masks import VOID, MaskReader
from ..pictures import FrameReader
from .base import PictureFiles, Video


@dataclass(frozen=True)
class IdMaps:
    """Masks of a video that are maps of ids.

    Attributes:
        paths: Frame -> its file.
        complete: See :class:`~qsam2_ao.data.annotation.Annotation`.
        known_ids: The objects, where the data set lists them; another id in a mask is an error.
        merge: Whether all objects count as one, whose id is 1.
    """

    paths: Mapping[int, Path]
    complete: bool = True
    known_ids: tuple[int, ...] | None = None
    merge: bool = False

    @property
    def annotated(self) -> tuple[int, ...]:
        """The frames that have a file."""
        return tuple(self.paths)

    @cached_property
    def object_ids(self) -> tuple[int, ...]:
        """Those listed, or all that occur: then every mask is read once."""
        if self.known_ids is not None:
            return self.known_ids
        return tuple(sorted({i for t in self.paths for i in self.read(t).masks}))

    @cached_property
    def _reader(self) -> MaskReader:
        return MaskReader(tuple(self.paths.values()))

    def read(self, t: int) -> Annotation:
        """The masks of a frame."""
        path = self.paths[t]
        ids = self._reader(path)
        if self.merge:
            ids = np.where((ids > 0) & (ids != VOID), 1, ids).astype(np.uint8)
        found = Annotation.from_ids(ids, complete=self.complete, source=str(path))
        if self.known_ids is not None and (strange := sorted(found.masks.keys() - set(self.known_ids))):
            raise DataError(
                f"{path} has the id {strange[0]}, but the data set lists the objects "
                f"{', '.join(map(str, self.known_ids))} for this video; correct one of them"
            )
        return found


def open_maps(
    images: Path,
    annotations: Path,
    *,
    complete: bool = True,
    known_ids: tuple[int, ...] | None = None,
    merge: bool = False,
    requested: Sequence[str] | None = None,
) -> Video:
    """Open one video.

    Args:
        images: The folder of its frames.
        annotations: The folder of its masks; a frame may have none, but one must.
        complete: See :class:`IdMaps`.
        known_ids: See :class:`IdMaps`.
        merge: See :class:`IdMaps`.
        requested: Names of the frames of which the benchmark wants masks.

    Raises:
        DataError: A folder is missing or empty, or a mask has no frame.
    """
    frame_paths, mask_paths = list_pictures(images), list_pictures(annotations)
    if not frame_paths:
        raise DataError(f"{images} has no frames; put its pictures there")
    if not mask_paths:
        raise DataError(f"{annotations} has no masks; at least one frame must be annotated")
    places = {path.stem: t for t, path in enumerate(frame_paths)}
    for path in mask_paths:
        if path.stem not in places:
            raise DataError(f"{path} has no frame of that name in {images}; add it or remove this")
    if requested is not None and (strays := sorted(set(requested) - places.keys())):
        raise DataError(f"{images} has no frame {strays[0]}, of which the data set's list wants a mask; add it")
    return Video(
        images.name,
        PictureFiles(frame_paths, FrameReader(frame_paths)),
        tuple(places),
        IdMaps({places[path.stem]: path for path in mask_paths}, complete, known_ids, merge),
        requested=None if requested is None else tuple(sorted(places[name] for name in requested)),
    )


def video_folders(folder: Path) -> tuple[str, ...]:
    """The folders in a folder, at least one, in natural order."""
    found = tuple(path.name for path in list_folders(folder))
    if not found:
        raise DataError(f"{folder} has no sequences; each is a folder of PNG files")
    return found


def check_folders(images: Path, annotations: Path) -> None:
    """Refuse a video that lacks its frames or its masks."""
    for folder, kind in ((images, "frames"), (annotations, "masks")):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder, which should hold the {kind} of {images.name}")


def split_folder(root: Path, split: str | None) -> Path:
    """The folder of a split, or the data set itself where it is that of one split.

    Raises:
        DataError: It has several, and none was chosen.
    """
    folders = split_folders(root)
    if split is None and folders and not (root / "Annotations").is_dir():
        raise DataError(f"{root} has a folder for each split: choose one of {', '.join(folders)}")
    return root if split is None else folders[split]


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of a data set that has ``JPEGImages`` and ``Annotations`` for each split: split -> its folder."""
    if not root.is_dir():
        return {}
    folders = (path for path in root.iterdir() if (path / "JPEGImages").is_dir() and (path / "Annotations").is_dir())
    return {path.name: path for path in sorted(folders)}
