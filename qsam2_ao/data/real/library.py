"""A folder of real pictures, opened once: what scenes are drawn from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ...errors import DataError
from ..pictures import read_rgb
from .pictures import Photographs, Pixels, list_files, open_photographs, read_alpha, whole_objects

#: How often a photograph comes from which set, where the folder has it.
SHARES = {"people": 0.4, "facade": 0.3, "nuclei": 0.18, "cells": 0.12}
#: Sets whose pictures make backgrounds.
SCENERY = ("facade", "people")


@dataclass(frozen=True)
class Library:
    """Photographs with masks, cut-outs, and pictures for backgrounds.

    Attributes:
        sets: The sets of photographs, in a fixed order.
        cutouts: Files of objects with alpha.
        backgrounds: Files of pictures without masks.
        keep: How many decoded photographs stay in memory, about 0.8 MiB each.

    Example:
        >>> library = Library.open("realdata/train")
    """

    sets: tuple[Photographs, ...]
    cutouts: tuple[Path, ...]
    backgrounds: tuple[Path, ...]
    keep: int = 3000
    _memory: dict[tuple[str, int], tuple[Pixels, Pixels, Pixels | None]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def open(cls, root: str | os.PathLike[str], backgrounds: str | os.PathLike[str] | None = None) -> Library:
        """Open a folder with some of ``people``, ``facade``, ``nuclei``, ``cells`` and with ``cutouts``.

        Args:
            root: The folder.
            backgrounds: A folder of further pictures for backgrounds.

        Raises:
            DataError: Nothing is there, or a file that belongs to another is missing.
        """
        folder = Path(root)
        present = [name for name in SHARES if (folder / name).is_dir()]
        sets = tuple(open_photographs(folder / name, union_is_object=name == "people") for name in present)
        if not sets:
            list_files(folder / "people" / "images")  # raises, and names what is missing
        scenery = tuple(path for photographs in sets if photographs.name in SCENERY for path in photographs.images)
        extra = () if backgrounds is None else list_files(Path(backgrounds))
        return cls(sets, list_files(folder / "cutouts"), (scenery or sets[0].images) + extra * 4)

    def photograph(self, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        """A photograph and the ids of its whole objects: 1, 2, ..., at least one.

        Raises:
            DataError: Of a thousand drawn, none has a whole object.
        """
        weights = np.array([SHARES.get(photographs.name, 0.1) for photographs in self.sets])
        for _ in range(1000):
            photographs = self.sets[int(rng.choice(len(self.sets), p=weights / weights.sum()))]
            image, parts, whole = self._read(photographs, int(rng.integers(len(photographs))))
            ids = whole if rng.random() < 0.6 and whole is not None else parts
            if ids.any():
                return image, ids
        raise DataError(
            f"no photograph of {', '.join(photographs.name for photographs in self.sets)} has an object that is large "
            "enough; are the masks empty?"
        )

    def _read(self, photographs: Photographs, index: int) -> tuple[Pixels, Pixels, Pixels | None]:
        """A photograph, its objects, and them as one where together they are an object."""
        key = photographs.name, index
        if key not in self._memory:
            image, ids = photographs.read(index)
            whole = (ids > 0).astype(np.uint8) if photographs.union_is_object else None
            if self._memory and len(self._memory) >= self.keep:
                self._memory.pop(next(iter(self._memory)))
            self._memory[key] = image, whole_objects(ids), whole
        return self._memory[key]

    def background(self, rng: np.random.Generator) -> Pixels:
        """A picture to put things in front of."""
        return read_rgb(self.backgrounds[int(rng.integers(len(self.backgrounds)))])

    def sprite(self, rng: np.random.Generator) -> Pixels:
        """An object with alpha: a cut-out, a person, or another object of a photograph."""
        if rng.random() < 0.6:
            return trimmed(read_alpha(self.cutouts[int(rng.integers(len(self.cutouts)))]))
        image, ids = self.photograph(rng)
        identity = pick_object(rng, ids)
        alpha = np.where(ids == identity, 255, 0).astype(np.uint8)
        alpha = np.minimum(alpha, cv2.blur(alpha, (3, 3)))  # the outline takes nothing of what was behind
        return trimmed(np.dstack([image, alpha]))


def pick_object(rng: np.random.Generator, ids: Pixels) -> int:
    """One of the ids in a mask; larger objects more often."""
    weights = np.sqrt(np.bincount(ids.ravel(), minlength=2))
    weights[0] = 0
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def trimmed(sprite: Pixels) -> Pixels:
    """A sprite without the empty margin around it."""
    rows, columns = (np.nonzero((sprite[..., 3] > 127).any(axis))[0] for axis in (1, 0))
    if len(rows) == 0:
        return sprite
    return np.ascontiguousarray(sprite[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
