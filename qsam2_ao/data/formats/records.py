"""JSON files and lists of names, read so that what is wrong in them is said with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from ...errors import DataError
from ..decoding import max_pixels

Kind = TypeVar("Kind")

#: JSON's values as Python's types, in words.
_WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def read_json(path: Path) -> object:
    """Parse a file.

    Args:
        path: The file.

    Raises:
        DataError: It is absent or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:  # a JSONDecodeError and a UnicodeDecodeError are ValueErrors
        raise DataError(f"{path} cannot be read as JSON ({error}); get it again") from error


def field(record: object, key: str, kind: type[Kind], where: object) -> Kind:
    """A field of a JSON object.

    Args:
        record: The object.
        key: The field's name.
        kind: ``dict``, ``list``, ``str`` or ``int``; a number with nothing but zeros behind its point counts as an
            ``int``.
        where: The file, and the place in it, for errors.

    Raises:
        DataError: It is not there, or is of another kind.

    Example:
        >>> field({"size": [2, 3]}, "size", list, "masks.json")
        [2, 3]
    """
    found = record.get(key) if isinstance(record, Mapping) else None
    if isinstance(found, float) and kind is int and found.is_integer():
        found = int(found)
    if not isinstance(found, kind) or isinstance(found, bool):
        what = "is not there" if found is None else f"is not {_WORDS[kind]}"
        raise DataError(f"{where}: the field {key!r} {what}, so that it is not in this format")
    return found


def size_field(record: object, where: object) -> tuple[int, int]:
    """The field ``size`` of a mask, height and width in pixels.

    Args:
        record: The mask.
        where: As for :func:`field`.

    Raises:
        DataError: It is not there, or is no such pair.
    """
    found = field(record, "size", list, where)
    if len(found) != 2 or not all(type(side) is int and side > 0 for side in found):
        raise DataError(f"{where}: the size of a mask is {found}, and must be [height, width] in pixels; correct it")
    return checked_size(found[0], found[1], where)


def checked_size(height: int, width: int, where: object) -> tuple[int, int]:
    """The size of a mask that is to be made, within what a picture may have.

    Args:
        height: In pixels.
        width: In pixels.
        where: As for :func:`field`.

    Raises:
        DataError: It is larger than :func:`~qsam2_ao.data.decoding.max_pixels`, or not positive.
    """
    if min(height, width) < 1 or height * width > max_pixels():
        raise DataError(
            f"{where}: a mask of {width} x {height} pixels cannot be; correct it, or set the environment variable "
            "QSAM2_MAX_PIXELS for a picture that is so large"
        )
    return height, width


def read_names(path: Path) -> tuple[str, ...]:
    """The videos of a list: a name on each line, or, as in DAVIS 2016, the paths of each frame and mask.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be read, or lists nothing.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of sequences ({error}); get it again") from error
    names = tuple(dict.fromkeys(map(_name, lines)))
    if not names:
        raise DataError(f"{path} lists no sequences; get it again")
    return names


def _name(entry: str) -> str:
    path = Path(entry.split()[0])
    return path.parent.name if path.is_absolute() and path.suffix else entry
