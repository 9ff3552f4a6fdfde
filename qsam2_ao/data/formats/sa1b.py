"""SA-1B: ``sa_1.jpg`` and ``sa_1.json`` with the run lengths of its masks, which overlap; in folders ``sa_000000``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ..annotation import Annotation, LazyMasks
from ..listing import natural_key
from .base import Dataset, Video, open_picture_with
from .masklets import decode_rle_at
from .records import checked_size, field, read_json, size_field

NAME = "sa-1b"


def detect(root: Path) -> bool:
    """Whether there is a picture's file of masks in it, or one folder down."""
    return any(next(root.glob(pattern), None) is not None for pattern in ("sa_*.json", "sa_*/sa_*.json"))


def splits(root: Path) -> tuple[str, ...]:
    """None: it is all for training."""
    return ()


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the pictures.

    Raises:
        DataError: A picture has no masks, or masks have no picture.
    """
    images, masks = ({path.with_suffix("") for path in _files(root, suffix)} for suffix in ("jpg", "json"))
    for here, there, ending, other in ((images, masks, "jpg", "json"), (masks, images, "json", "jpg")):
        if missing := here - there:
            first = min(missing)
            more = f", and {len(missing) - 1} others neither" if len(missing) > 1 else ""
            raise DataError(f"{first}.{ending} has no {first.name}.{other} beside it{more}; get it, or move this away")
    if not images:
        raise DataError(f"{root} has no pictures called sa_*.jpg, in it or in folders called sa_*")
    names = sorted((str(path.relative_to(root)) for path in images), key=natural_key)
    return Dataset(NAME, root, tuple(names), _Opener(root), pictures=True)


def _files(root: Path, suffix: str) -> list[Path]:
    return [*root.glob(f"sa_*.{suffix}"), *root.glob(f"sa_*/sa_*.{suffix}")]


@dataclass(frozen=True)
class _Opener:
    root: Path

    def __call__(self, name: str) -> Video:
        path = self.root / f"{name}.json"
        return open_picture_with(name, self.root / f"{name}.jpg", _Masks(path), overlapping=True)


@dataclass(frozen=True)
class _Masks:
    path: Path

    def __call__(self) -> Annotation:
        record = read_json(self.path)
        image = field(record, "image", dict, self.path)
        size = checked_size(field(image, "height", int, self.path), field(image, "width", int, self.path), self.path)
        entries: dict[int, dict[str, object]] = {}
        for number, entry in enumerate(field(record, "annotations", list, self.path), 1):
            where = f"{self.path}, annotation {number}"
            object_id = field(entry, "id", int, where)
            if object_id in entries or object_id < 0:
                raise DataError(f"{where}: its id is {object_id}, which is negative or another's too; correct it")
            found = field(entry, "segmentation", dict, where)
            if (other := size_field(found, where)) != size:
                raise DataError(f"{where}: its mask is {list(other)}, and the picture {list(size)}; correct it")
            entries[object_id] = found

        def decode(object_id: int) -> NDArray[np.bool_]:
            return decode_rle_at(entries[object_id], f"{self.path}, annotation {object_id}")

        return Annotation(size, LazyMasks(list(entries), decode), source=str(self.path))
