"""Which files of a folder are pictures, and in what order."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from ..errors import DataError
from ..spelling import counted

#: File name endings that count as pictures, wherever pictures are looked for.
PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".webp", ".avif", ".heic", ".heif", ".bmp", ".gif"),
    *(".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm"),
)
#: File name endings that count as videos, likewise.
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".3gp"),
    *(".ogv", ".flv"),
)
#: Folders that an operating system or a program keeps for itself; so are those whose names begin with a dot.
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "__pycache__", "lost+found"}
#: Names of folders that hold masks beside photographs, as in DAVIS, VOC, COCO, ADE20K, Cityscapes; a number, a split or
#: the like may follow.
_MASK_FOLDER = re.compile(
    r"(annotations?|masks?|labels?|segmentations?(class|object)?|scribbles?|gt(fine|coarse)?|ground[ _-]?truth"
    r"|panoptic)([^a-z].*)?",
    re.IGNORECASE,
)
#: What the names of pictures end with that ``qsam2 segment`` writes, and of masks in data sets.
_RESULTS = ("_mask", "_overlay")

_logger = logging.getLogger(__name__)


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sort by this to have frame_2 before frame_10.

    Args:
        name: A file's name, best without its ending.

    Example:
        >>> sorted(["frame_10", "Frame_9", "frame_2"], key=natural_key)
        ['frame_2', 'Frame_9', 'frame_10']
    """
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def list_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """The picture files of a folder, in the order of time.

    Args:
        folder: The folder. Hidden files and other endings than :data:`PICTURE_SUFFIXES` are left out.

    Returns:
        The paths in natural order: numbers in names count as numbers.

    Raises:
        DataError: There is no such folder, two pictures differ in their ending only, or ``NAME_mask.*`` or
            ``NAME_overlay.*`` is beside ``NAME.*``, which would count as a frame.

    Example:
        >>> list_pictures("frames")[0].name  # doctest: +SKIP
        '00000.jpg'
    """
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.is_dir()]
    except OSError as error:
        raise DataError(f"{folder} is not a folder that can be read ({error.strerror})") from error
    pictures = {Path(entry.path) for entry in entries if _is_picture(entry.name)}
    if results := _results(pictures):
        raise DataError(
            f"{min(results)} is named like a result of the picture beside it ({counted(len(results), 'such file')}), "
            "and would count as a frame: move masks and overlays to a folder of their own"
        )
    return _in_order(pictures)


def list_folders(folder: Path) -> list[Path]:
    """The folders in a folder in natural order, without those that a system or a program keeps for itself."""
    return [folder / name for name in _of_the_user(path.name for path in folder.iterdir() if path.is_dir())]


def _of_the_user(folders: Iterable[str]) -> list[str]:
    return sorted((n for n in folders if n[0] != "." and n.casefold() not in _SYSTEM_FOLDERS), key=natural_key)


def find_photographs(folder: str | os.PathLike[str]) -> list[Path]:
    """The photographs below a folder, and not the masks that belong to them.

    Args:
        folder: The folder. Left out are hidden files and folders, folders in it that are named like those of masks
            (``Annotations``, ``masks``, ``labels``, ``SegmentationClass``, ...), and ``NAME_mask.*`` and
            ``NAME_overlay.*`` beside ``NAME.*``. What is left out for its name is said in a warning.

    Returns:
        The paths in natural order.

    Raises:
        DataError: There is no such folder, two pictures differ in their ending only, so that one may be the other's
            mask, or there is nothing but what is named like masks.

    Example:
        >>> len(find_photographs("DAVIS"))  # doctest: +SKIP
        3455
    """
    found: list[Path] = []
    masks: list[Path] = []
    for place, names, for_masks in _walk(Path(folder)):
        pictures = {place / name for name in names if _is_picture(name)}
        beside = _results(pictures)
        masks += pictures if for_masks else beside
        if not for_masks:
            found += _in_order(pictures - beside)
    if masks and not found:
        raise DataError(
            f"the {len(masks)} pictures below {folder} are named like masks ({min(masks)}, ...); name the folder of "
            "photographs itself"
        )
    if masks:
        _logger.warning(
            "%d pictures below %s are left out, since their names say that they are masks or overlays (%s, ...); name "
            "the folder of photographs itself if they are not",
            len(masks),
            folder,
            min(masks),
        )
    return found


def _walk(root: Path) -> Iterator[tuple[Path, list[str], bool]]:
    """Every folder with the names of its files, and whether it is one of masks; links are followed once."""

    def unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename} is not a folder that can be read ({error.strerror})") from error

    seen: set[tuple[int, int]] = set()
    masks: set[Path] = set()
    for name, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        place, status = Path(name), os.stat(name)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if place != root and (place.parent in masks or _MASK_FOLDER.fullmatch(place.name)):
            masks.add(place)
        folders[:] = _of_the_user(folders)
        yield place, files, place in masks


def _results(pictures: set[Path]) -> set[Path]:
    """Those that are named like what ``qsam2 segment`` writes of another one."""
    stems = {path.stem for path in pictures}
    return {p for p in pictures for end in _RESULTS if p.stem.endswith(end) and p.stem.removesuffix(end) in stems}


def _is_picture(name: str) -> bool:
    # macOS keeps "._x.jpg" beside x.jpg on foreign disks: not a picture.
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def _in_order(paths: Iterable[Path]) -> list[Path]:
    ordered = sorted(paths, key=lambda path: natural_key(path.stem))
    for path, other in pairwise(ordered):
        if path.stem == other.stem:
            first, second = sorted((path, other))
            raise DataError(
                f"{first} and {second.name} have one name with two endings: keep one of the two, or move masks to a "
                "folder of their own"
            )
    return ordered
