"""SA-V's masklets: a JSON file with the run lengths of every object on some frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ..annotation import Annotation, LazyMasks
from ..rle import decode_rle
from .records import field, read_json, size_field

#: Frames a second of the videos, of which masklets have every fourth unless the file says its own rate.
_RATE, _EVERY = 24, 4

#: What a frame has of each object: run lengths, or ``None`` where nothing is known of it. Without any there is no row.
Row = Sequence[object] | None


def read_masklets(path: Path) -> tuple[list[Row], tuple[int, ...], int]:
    """Parse a file.

    Args:
        path: Such as ``sav_000001_manual.json``.

    Returns:
        The rows; the objects' ids in the order of a row; and of how many frames one has a row.

    Raises:
        DataError: It is damaged or in another format.
    """
    record = read_json(path)
    key = "masklet" if isinstance(record, dict) and "masklet" in record else "masks"
    rows = field(record, key, list, path)
    lengths = {len(row) if isinstance(row, list) else 0 for row in rows if row is not None}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"{path}: every frame must list the same objects, at least one; get the file again")
    count = lengths.pop()
    assert isinstance(record, dict)
    ids = field(record, "masklet_id", list, path) if "masklet_id" in record else list(range(count))
    if not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) != len(ids) or len(ids) != count:
        raise DataError(f"{path}: masklet_id is {ids}, and must number the {count} objects of a frame; correct it")
    known = [None if row is None or all(entry is None for entry in row) else row for row in rows]
    return known, tuple(ids), _stride(record.get("fps"), path)


def _stride(rate: object, path: Path) -> int:
    if rate is None:
        return _EVERY
    rate = rate[0] if isinstance(rate, list) and rate else rate
    if not isinstance(rate, (int, float)) or rate <= 0 or _RATE % rate:
        raise DataError(f"{path}: its masks are said to come {rate!r} times a second, which is no part of {_RATE}")
    return int(_RATE // rate)


@dataclass(frozen=True)
class Masklets:
    """The masks of one video.

    Attributes:
        path: The file.
        rows: Frame -> its row.
        object_ids: In the order of a row.
    """

    path: Path
    rows: Mapping[int, Sequence[object]]
    object_ids: tuple[int, ...]

    @property
    def annotated(self) -> tuple[int, ...]:
        """The frames that have a row."""
        return tuple(self.rows)

    def read(self, t: int) -> Annotation:
        """The masks of a frame, each decoded when it is asked for."""
        source = f"{self.path}, frame {t}"
        found = {i: entry for i, entry in zip(self.object_ids, self.rows[t], strict=True) if entry is not None}
        sizes = {size_field(entry, f"{source}, object {i}") for i, entry in found.items()}
        if len(sizes) > 1:
            raise DataError(f"{source}: its masks are of {len(sizes)} sizes; get the file again")

        def decode(object_id: int) -> NDArray[np.bool_]:
            return decode_rle_at(found[object_id], f"{source}, object {object_id}")

        return Annotation(sizes.pop(), LazyMasks(list(found), decode), complete=False, source=source)


def decode_rle_at(entry: object, where: str) -> NDArray[np.bool_]:
    """Decode run lengths of a file.

    Args:
        entry: ``size`` and ``counts``.
        where: The file, and the place in it.

    Raises:
        DataError: They are damaged.
    """
    try:
        return decode_rle(entry if isinstance(entry, Mapping) else {})
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
