"""SA-V val and test: ``JPEGImages_24fps/VIDEO/*.jpg`` and ``Annotations_6fps/VIDEO/OBJECT/*.png``.

Every object has a folder of masks of its own, so that they may overlap, of every fourth frame. The videos of a split
are those of ``sav_val.txt``. Folders without the rates in their names are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ..annotation import Annotation, LazyMasks
from ..decoding import picture_size
from ..listing import list_pictures
from ..masks import decode_mask
from ..pictures import FrameReader
from .base import Dataset, PictureFiles, Video, check_size
from .maps import check_folders, video_folders
from .records import read_names

NAME = "sav"
_FRAMES, _MASKS = ("JPEGImages_24fps", "JPEGImages"), ("Annotations_6fps", "Annotations")


def detect(root: Path) -> bool:
    """Whether there are folders of masks for each object."""
    return bool(_split_folders(root)) or _has_objects(root)


def splits(root: Path) -> tuple[str, ...]:
    """The parts that lie side by side, without "sav_"; none for the folder of one of them."""
    return tuple(_split_folders(root))


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the videos of a split.

    Raises:
        DataError: A folder or a listed video is missing.
    """
    folder = root if split is None else _split_folders(root)[split]
    images, annotations = _part(folder, _FRAMES), _part(folder, _MASKS)
    lists = sorted(folder.glob("sav_*.txt"))
    names = read_names(lists[0]) if lists else video_folders(annotations)
    for name in names:
        check_folders(images / name, annotations / name)
    return Dataset(NAME, root, names, _Opener(images, annotations), split)


@dataclass(frozen=True)
class _Opener:
    images: Path
    annotations: Path

    def __call__(self, name: str) -> Video:
        frames = list_pictures(self.images / name)
        if not frames:
            raise DataError(f"{self.images / name} has no frames; put its pictures there")
        places = {path.stem: t for t, path in enumerate(frames)}
        masks: dict[int, dict[int, Path]] = {}
        for folder in map((self.annotations / name).joinpath, video_folders(self.annotations / name)):
            if not folder.name.isdecimal():
                raise DataError(f"{folder} should be called by its object's number, such as 000")
            paths = list_pictures(folder)
            if not paths:
                raise DataError(f"{folder} has no masks; get it again, or remove it")
            for path in paths:
                if path.stem not in places:
                    raise DataError(f"{path} has no frame of that name in {self.images / name}; add it or remove this")
                masks.setdefault(places[path.stem], {})[int(folder.name)] = path
        return Video(
            name,
            PictureFiles(frames, FrameReader(frames)),
            tuple(places),
            MaskFolders(masks),
            overlapping=True,
        )


@dataclass(frozen=True)
class MaskFolders:
    """Masks in a file for each object and frame.

    Attributes:
        paths: Frame -> object -> its file.
    """

    paths: Mapping[int, Mapping[int, Path]]

    @cached_property
    def annotated(self) -> tuple[int, ...]:
        """The frames on which any object has a file."""
        return tuple(sorted(self.paths))

    @cached_property
    def object_ids(self) -> tuple[int, ...]:
        """The objects' numbers."""
        return tuple(sorted({i for paths in self.paths.values() for i in paths}))

    def read(self, t: int) -> Annotation:
        """The masks of a frame; of objects without a file nothing is known."""
        paths = self.paths[t]
        first = next(iter(paths.values()))
        size = picture_size(first)

        def decode(object_id: int) -> NDArray[np.bool_]:
            path = paths[object_id]
            ids = decode_mask(path).ids
            check_size(str(path), ids.shape, str(first), size)
            if len(values := np.unique(ids[ids > 0])) > 1:
                raise DataError(
                    f"{path} has the values {', '.join(map(str, values))}, but a file in an object's folder has one "
                    "object; put others into folders of their own"
                )
            return ids > 0

        return Annotation(size, LazyMasks(sorted(paths), decode), complete=False, source=str(first))


def _part(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise DataError(f"{folder} has no folder {' or '.join(names)}, as SA-V has")


def _split_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        return {}
    folders = sorted(path for path in root.iterdir() if path.is_dir() and (path / _FRAMES[0]).is_dir())
    return {path.name.removeprefix("sav_"): path for path in folders}


def _has_objects(root: Path) -> bool:
    """Whether the first video's masks are folders, and not files."""
    images, masks = (next((root / n for n in names if (root / n).is_dir()), None) for names in (_FRAMES, _MASKS))
    if images is None or masks is None:
        return False
    video = next((path for path in sorted(masks.iterdir()) if path.is_dir()), None)
    if video is None or not any(path.is_dir() and path.name.isdecimal() for path in video.iterdir()):
        return False
    # A folder of resolutions has folders of videos in both.
    frames = images / video.name
    return frames.is_dir() and not any(path.is_dir() for path in frames.iterdir())
