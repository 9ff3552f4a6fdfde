"""COCO's panoptic segments: ``annotations/panoptic_SPLIT.json``, ``annotations/panoptic_SPLIT/*.png``, and ``SPLIT``.

A segment's id is its colour in the PNG, red + 256 green + 65536 blue. All segments are objects, things and stuff.
Crowds, and what has no segment (0), are void.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..annotation import Annotation, LazyMasks
from ..decoding import open_picture
from .base import Dataset, Video, check_size, open_picture_with
from .coco import IndexedOpener, check_image, choose_file, image_folders
from .records import field

NAME = "coco-panoptic"


def detect(root: Path) -> bool:
    """Whether there is a file of panoptic segments, or it is one."""
    return bool(_files(root)) or (root.suffix == ".json" and root.name.startswith("panoptic"))


def splits(root: Path) -> tuple[str, ...]:
    """Those of the files' names."""
    return tuple(_files(root))


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the pictures that a JSON file lists.

    Raises:
        DataError: The file is damaged, or a picture or its segments are missing.
    """
    path = choose_file(root, split, _files(root), "annotations/panoptic_*.json")
    segments = path.with_suffix("")
    if not segments.is_dir():
        raise DataError(f"{segments}: no such folder, which should hold the segments of {path.name} as PNG files")
    opener = _Opener(path, image_folders(root, path, split), segments)
    for name, entry in opener.index.images.items():
        check_image(opener.folder, entry, path)
        if len(found := opener.entry(name)[2]) != 1:
            raise DataError(f"{path}, picture {name} has {len(found)} annotations, and must have one; correct it")
        check_image(segments, found[0], path)
    return Dataset(NAME, root, tuple(opener.index.images), opener, split, pictures=True)


@dataclass(frozen=True)
class _Opener(IndexedOpener):
    segments: Path

    def __call__(self, name: str) -> Video:
        path, size, entries, where = self.entry(name)
        file = self.segments / field(entries[0], "file_name", str, where)
        return open_picture_with(name, path, _Segments(file, size, entries[0], where), overlapping=False)


@dataclass(frozen=True)
class _Segments:
    path: Path
    size: tuple[int, int]
    entry: Mapping[str, object]
    where: str

    def __call__(self) -> Annotation:
        listed: dict[int, bool] = {}
        for segment in field(self.entry, "segments_info", list, self.where):
            number = field(segment, "id", int, self.where)
            listed[number] = bool(segment.get("iscrowd", 0))
        picture = open_picture(self.path)
        if picture.mode != "RGB":
            raise DataError(f"{self.path} has mode {picture.mode}, and panoptic segments are colours (RGB)")
        ids = np.asarray(picture).astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
        check_size(str(self.path), ids.shape, self.where, self.size)
        present = set(np.unique(ids).tolist()) - {0}
        if strange := sorted(present - listed.keys()):
            raise DataError(f"{self.path} has the segment {strange[0]}, which {self.where} does not list; correct one")
        if absent := sorted(listed.keys() - present):
            raise DataError(f"{self.where} lists the segment {absent[0]}, which {self.path} has not; correct one")
        crowds = [number for number, crowd in listed.items() if crowd]
        objects = [number for number, crowd in listed.items() if not crowd]
        void = np.isin(ids, [0, *crowds])
        masks = LazyMasks(objects, lambda number: ids == number)
        return Annotation(self.size, masks, void if void.any() else None, source=str(self.path))


def _files(root: Path) -> dict[str, Path]:
    """Split -> its file of segments."""
    if not root.is_dir():
        return {}
    return {p.stem.removeprefix("panoptic_"): p for p in sorted(root.glob("annotations/panoptic_*.json"))}
