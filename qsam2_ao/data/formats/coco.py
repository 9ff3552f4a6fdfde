"""COCO's instances: ``annotations/instances_SPLIT.json`` and the pictures in ``SPLIT``; or a JSON file itself.

Polygons and run lengths become masks as pycocotools makes them; objects have the ids of their annotations, and may
overlap. Crowds (``iscrowd``) are void where no object is. ``SPLIT/_annotations.coco.json`` beside the pictures, as
labelling services export it, is read too.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...optional import needed
from ..annotation import Annotation, LazyMasks
from ..rle import decode_rle
from .base import Dataset, Video, open_picture_with
from .masklets import decode_rle_at
from .records import checked_size, field, read_json

NAME = "coco"
_BESIDE = "_annotations.coco.json"


def detect(root: Path) -> bool:
    """Whether there is a file of instances, or it is a JSON file."""
    return bool(_files(root)) or (root.suffix == ".json" and not root.name.startswith("panoptic"))


def splits(root: Path) -> tuple[str, ...]:
    """Those of the files' names."""
    return tuple(_files(root))


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the pictures that a JSON file lists.

    Raises:
        DataError: The file is damaged, or a picture is missing.
    """
    path = choose_file(root, split, _files(root), "annotations/instances_*.json")
    opener = _Opener(path, image_folders(root, path, split))
    for entry in opener.index.images.values():
        check_image(opener.folder, entry, path)
    return Dataset(NAME, root, tuple(opener.index.images), opener, split, pictures=True)


def choose_file(root: Path, split: str | None, files: Mapping[str, Path], pattern: str) -> Path:
    """The JSON file of a split; of a data set that has one file, that.

    Raises:
        DataError: There are several, and no split was chosen, or there is none.
    """
    if root.is_file():
        return root
    if split is None and len(files) != 1:
        raise DataError(f"{root} has {len(files)} files {pattern}; choose one of them by its path, or by its split")
    return next(iter(files.values())) if split is None else files[split]


def image_folders(root: Path, path: Path, split: str | None) -> tuple[Path, ...]:
    """Where the pictures of a JSON file usually lie.

    Args:
        root: The data set, or the file itself.
        path: The file.
        split: Of its name.
    """
    if path.name == _BESIDE:
        return (path.parent,)
    name = split or path.stem.removeprefix("instances_").removeprefix("panoptic_").removeprefix("annotations_")
    bases = [root] if root.is_dir() else [path.parent, path.parent.parent]
    return tuple(base / place for base in bases for place in (name, f"images/{name}", "images", "input_images", "."))


def check_image(folder: Path, entry: Mapping[str, object], path: Path) -> None:
    """Refuse a listed picture that is not there.

    Raises:
        DataError: It is missing.
    """
    name = field(entry, "file_name", str, path)
    if not os.path.isfile(folder / name):  # False for a name that is too long, too
        raise DataError(f"{folder / name}: no such file, and {path} lists it; get it, or remove it from the list")


@dataclass(frozen=True)
class Index:
    """What a JSON file of COCO says of each picture.

    Attributes:
        images: Name -> the entry of ``images``; names are those of the files, without their endings.
        annotations: ``id`` of a picture -> its entries of ``annotations``.
    """

    images: Mapping[str, Mapping[str, object]]
    annotations: Mapping[int, Sequence[Mapping[str, object]]]


def read_index(path: Path) -> Index:
    """Read a file.

    Args:
        path: The JSON file.

    Raises:
        DataError: It is damaged, two pictures have one name or number, or an annotation is of an unknown picture.
    """
    record = read_json(path)
    images: dict[str, Mapping[str, object]] = {}
    numbers: set[int] = set()
    for place, entry in enumerate(field(record, "images", list, path), 1):
        where = f"{path}, image {place}"
        file = Path(field(entry, "file_name", str, where))
        if not file.name:
            raise DataError(f"{where}: its file_name is {str(file)!r}, which names no file; correct it")
        name = file.with_suffix("").as_posix()
        number = field(entry, "id", int, where)
        if name in images or number in numbers:
            raise DataError(f"{where}: another has its name {name} or its id {number}; correct one of them")
        images[name] = entry
        numbers.add(number)
    if not images:
        raise DataError(f"{path} lists no pictures")
    annotations: defaultdict[int, list[Mapping[str, object]]] = defaultdict(list)
    for place, entry in enumerate(field(record, "annotations", list, path), 1):
        number = field(entry, "image_id", int, f"{path}, annotation {place}")
        if number not in numbers:
            raise DataError(f"{path}, annotation {place} is of image {number}, which is not listed; correct it")
        annotations[number].append(entry)
    return Index(images, dict(annotations))


@dataclass(frozen=True)
class IndexedOpener:
    """What opens the pictures of a JSON file.

    Attributes:
        path: The file.
        folders: One of them has the pictures.
    """

    path: Path
    folders: tuple[Path, ...]

    @cached_property
    def folder(self) -> Path:
        """The folder of the pictures.

        Raises:
            DataError: None of the folders has the first one.
        """
        first = field(next(iter(self.index.images.values())), "file_name", str, self.path)
        for folder in self.folders:
            if os.path.isfile(folder / first):
                return folder
        raise DataError(
            f"{self.path} lists the picture {first}, which is in none of {', '.join(map(str, self.folders))}; put the "
            "pictures into one of them"
        )

    @cached_property
    def index(self) -> Index:
        """The file's content."""
        return read_index(self.path)

    def __getstate__(self) -> dict[str, object]:
        """Without the file's content, which every process reads itself."""
        return {key: value for key, value in self.__dict__.items() if key != "index"}

    def entry(self, name: str) -> tuple[Path, tuple[int, int], Sequence[Mapping[str, object]], str]:
        """A picture's file, its height and width, its annotations, and what to call it in errors."""
        image, where = self.index.images[name], f"{self.path}, picture {name}"
        size = checked_size(field(image, "height", int, where), field(image, "width", int, where), where)
        found = self.index.annotations.get(field(image, "id", int, where), ())
        return self.folder / field(image, "file_name", str, where), size, found, where


class _Opener(IndexedOpener):
    def __call__(self, name: str) -> Video:
        path, size, entries, where = self.entry(name)
        return open_picture_with(name, path, _Masks(size, tuple(entries), where), overlapping=True)


@dataclass(frozen=True)
class _Masks:
    size: tuple[int, int]
    entries: tuple[Mapping[str, object], ...]
    where: str

    def __call__(self) -> Annotation:
        objects: dict[int, object] = {}
        crowds: list[NDArray[np.bool_]] = []
        for entry in self.entries:
            number = field(entry, "id", int, self.where)
            if number in objects or number < 0:
                raise DataError(f"{self.where}: an annotation's id {number} is negative or another's too; correct it")
            segmentation = entry.get("segmentation")
            if segmentation is None:
                raise DataError(
                    f"{self.where}, annotation {number} is a box without a segmentation; get one with masks"
                )
            if entry.get("iscrowd", 0):
                crowds.append(segmentation_mask(segmentation, self.size, f"{self.where}, annotation {number}"))
            else:
                objects[number] = segmentation

        def decode(number: int) -> NDArray[np.bool_]:
            return segmentation_mask(objects[number], self.size, f"{self.where}, annotation {number}")

        void = None
        if crowds:
            void = np.logical_or.reduce(crowds)
            for number in objects:
                void &= ~decode(number)
        return Annotation(self.size, LazyMasks(list(objects), decode), void, source=self.where)


def segmentation_mask(segmentation: object, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """Polygons or run lengths as a mask.

    Args:
        segmentation: A list of polygons ``[x0, y0, x1, y1, ...]`` in pixels, or run lengths.
        size: Height and width of the picture.
        where: The file, and the place in it.

    Returns:
        bool ``[height, width]``.

    Raises:
        DataError: It is neither, or does not fit the picture.
        MissingPackageError: They are polygons, and pycocotools is not installed.
    """
    if not isinstance(segmentation, list):
        mask = decode_rle_at(segmentation, where)
        if mask.shape != size:
            raise DataError(f"{where}: its mask is {list(mask.shape)}, the picture {list(size)}; correct it")
        return mask
    height, width = size
    polygons = []
    for polygon in segmentation:
        try:
            corners = np.array(polygon, np.float64).reshape(-1, 2)
        except (ValueError, TypeError) as error:
            raise DataError(f"{where}: its segmentation is neither polygons nor run lengths ({error})") from error
        # Corners far outside would take memory without end; a little over the edge is usual.
        inside = (corners >= -max(size)) & (corners <= 2 * max(size))
        if len(corners) < 3 or not bool(inside.all()):
            raise DataError(f"{where}: a polygon has {len(corners)} corners, or some far outside of {width} x {height}")
        polygons.append(corners.ravel().tolist())
    if not segmentation:
        raise DataError(f"{where}: its segmentation is empty; remove the annotation")
    coco = needed("pycocotools.mask")
    merged = coco.merge(coco.frPyObjects(polygons, height, width))
    return decode_rle(merged)


def _files(root: Path) -> dict[str, Path]:
    """Split -> its file of instances."""
    if not root.is_dir():
        return {}
    found = {p.stem.removeprefix("instances_"): p for p in sorted(root.glob("annotations/instances_*.json"))}
    return found or {p.parent.name: p for p in sorted(root.glob(f"*/{_BESIDE}"))}
