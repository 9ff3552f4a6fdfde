"""DAVIS 2016 and 2017, and folders laid out like them: ``JPEGImages/VIDEO/*.jpg`` and ``Annotations/VIDEO/*.png``.

A folder between (``JPEGImages/480p/VIDEO``) is found by itself. Splits are the lists in ``ImageSets``: "val" is that of
2017 where there are both years, "2016/val" that of 2016, in which all objects count as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from ..listing import list_folders, list_pictures
from .base import Dataset, Video
from .maps import check_folders, open_maps, video_folders
from .records import read_names

NAME = "davis"


@dataclass(frozen=True)
class _Opener:
    images: Path
    annotations: Path
    merge: bool = False

    def __call__(self, name: str) -> Video:
        return open_maps(self.images / name, self.annotations / name, merge=self.merge)


def detect(root: Path) -> bool:
    """Whether a folder is laid out like this."""
    return (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir()


def splits(root: Path) -> tuple[str, ...]:
    """The lists of sequences that there are; the newest year's first, and without the year."""
    return tuple(_lists(root))


def open_split(root: Path, split: str | None, *, resolution: str | None = None) -> Dataset:
    """Open the sequences of a split, or of the whole folder.

    Args:
        root: The folder that holds ``JPEGImages`` and ``Annotations``.
        split: One of :func:`splits`; ``None`` for all that have annotations.
        resolution: The folder between; by default "480p" or the only one.

    Raises:
        DataError: A folder or a listed sequence is missing.
    """
    images, annotations = (sequences_folder(root / kind, resolution) for kind in ("JPEGImages", "Annotations"))
    merge = False
    if split is None:
        names = video_folders(annotations)
    else:
        path = _lists(root)[split]
        merge = path.parent.name in ("2016", "480p", "1080p")
        names = read_names(path)
    for name in names:
        check_folders(images / name, annotations / name)
    return Dataset(NAME, root, names, _Opener(images, annotations, merge), split)


def sequences_folder(folder: Path, resolution: str | None = None) -> Path:
    """The folder of the videos, past one of resolutions."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; DAVIS has JPEGImages and Annotations side by side")
    if resolution is not None:
        if not (folder / resolution).is_dir():
            raise DataError(f"{folder / resolution}: no such folder; choose another resolution")
        return folder / resolution
    # A video may have a folder of its user's beside its frames; one of a resolution has no frames.
    between = [path.name for path in list_folders(folder) if list_folders(path) and not list_pictures(path)]
    if not between:
        return folder
    if len(between) > 1 and "480p" not in between:
        raise DataError(f"{folder} holds several resolutions ({', '.join(between)}); choose one of them")
    return folder / ("480p" if "480p" in between else between[0])


def _lists(root: Path) -> dict[str, Path]:
    """Split -> its file. Years are newest first, so that they have the plain names."""
    found: dict[str, Path] = {}
    folder = root / "ImageSets"
    if not folder.is_dir():
        return found
    for year in sorted((path for path in folder.iterdir() if path.is_dir()), key=_newest_first):
        for path in sorted(year.glob("*.txt")):
            found.setdefault(path.stem, path)
            found[f"{year.name}/{path.stem}"] = path
    for path in sorted(folder.glob("*.txt")):
        found.setdefault(path.stem, path)
    return found


def _newest_first(path: Path) -> tuple[bool, int, str]:
    """2019's lists (unsupervised) come last, for they are of another task; 2016's folders are called by resolution."""
    year = int(path.name) if path.name.isdigit() else 0
    return year > 2017, -year, path.name
