"""Pictures and their annotations as two trees of folders, matched by name."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ...errors import DataError
from ..listing import PICTURE_SUFFIXES, natural_key


def files_below(root: Path, suffixes: Collection[str] = PICTURE_SUFFIXES) -> dict[str, Path]:
    """The files below a folder by their path in it, without the ending; hidden ones are left out.

    Args:
        root: The folder.
        suffixes: Endings, in lower case.

    Raises:
        DataError: There is no such folder, or two files differ in their ending only.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    found: dict[str, Path] = {}
    for path in _walk(root):
        if path.suffix.lower() not in suffixes:
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{found[name]} and {path.name} have one name with two endings; keep one of them")
        found[name] = path
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def _walk(root: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(root):
        folders[:] = [folder for folder in folders if folder[0] != "."]
        yield from (Path(place, name) for name in names if name[0] != ".")


def check_pairs(images: dict[str, Path], masks: dict[str, Path], *, what: str, required: bool = True) -> None:
    """Refuse annotations without a picture, and pictures without an annotation.

    Args:
        images: Name -> picture.
        masks: Name -> annotation.
        what: What an annotation is called.
        required: Whether every picture needs one.

    Raises:
        DataError: There are such files; it names the first and counts them.
    """
    wrong = [(masks, images, "picture")] + [(images, masks, what)] * required
    for here, there, other in wrong:
        if missing := [name for name in here if name not in there]:
            more = f", and {len(missing) - 1} others have none" if len(missing) > 1 else ""
            raise DataError(f"{here[missing[0]]} has no {other} of its name{more}; add it, or move this away")


def paired_folders(
    root: Path, images: Collection[str], annotations: Collection[str], suffixes: Collection[str]
) -> dict[str, tuple[Path, Path]]:
    """Find folders of pictures and of annotations beside one another, in the orders that are in use.

    Args:
        root: The data set.
        images: What the folder of pictures may be called.
        annotations: What that of annotations may be called.
        suffixes: The endings of annotations.

    Returns:
        Split -> its two folders, for ``images/SPLIT`` and ``labels/SPLIT`` or ``SPLIT/images`` and
        ``SPLIT/labels``; one entry with the name "" where there are no splits; none where there are no such folders.
    """
    both = _side_by_side(root, images, annotations)
    if both is not None:
        first, second = both
        shared = sorted(_folders(first).keys() & _folders(second).keys(), key=natural_key)
        found = {name: (first / name, second / name) for name in shared} or {"": both}
    else:
        inside = {name: _side_by_side(path, images, annotations) for name, path in sorted(_folders(root).items())}
        found = {name: pair for name, pair in inside.items() if pair is not None}
    return {name: pair for name, pair in found.items() if has_file(pair[1], suffixes)}


def all_pairs(
    root: Path,
    places: dict[str, tuple[Path, Path]],
    split: str | None,
    suffixes: Collection[str] = PICTURE_SUFFIXES,
) -> tuple[dict[str, Path], dict[str, Path]]:
    """The pictures and the annotations of a split, or of all of them.

    Args:
        root: The data set.
        places: Of :func:`paired_folders`.
        split: One of them; ``None`` for all, with the split in front of the names.
        suffixes: The endings of annotations.

    Raises:
        DataError: As :func:`files_below` does.
    """
    if not places:
        raise DataError(f"{root} has no folders of pictures and annotations beside one another")
    images: dict[str, Path] = {}
    annotations: dict[str, Path] = {}
    for name, (first, second) in places.items():
        if split in (None, name):
            before = f"{name}/" if split is None and name else ""
            images |= {before + key: path for key, path in files_below(first).items()}
            annotations |= {before + key: path for key, path in files_below(second, suffixes).items()}
    return images, annotations


def has_file(folder: Path, suffixes: Collection[str]) -> bool:
    """Whether there is a file with one of the endings below a folder."""
    return any(path.suffix.lower() in suffixes for path in _walk(folder))


def _folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        return {}
    return {path.name: path for path in root.iterdir() if path.is_dir() and path.name[0] != "."}


def _side_by_side(root: Path, images: Collection[str], annotations: Collection[str]) -> tuple[Path, Path] | None:
    places = [[root / name for name in names if (root / name).is_dir()] for names in (images, annotations)]
    return (places[0][0], places[1][0]) if all(places) else None
