"""DAVIS 2016 and 2017, and folders laid out like them: ``JPEGImages/VIDEO/*.jpg`` and ``Annotations/VIDEO/*.png``.

A folder between (``JPEGImages/480p/VIDEO``) is found by itself. Splits are the lists in ``ImageSets``: "val" is that of
2017 where there are both years, "2016/val" that of 2016, in which all objects count as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from ..listing import natural_key
from .base import Dataset, Video
from .maps import open_maps

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
    found = _lists(root)
    return tuple(found)


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
        names = _listed(path)
    for name in names:
        check_folders(images / name, annotations / name)
    return Dataset(NAME, root, names, _Opener(images, annotations, merge), split)


def video_folders(folder: Path) -> tuple[str, ...]:
    """The folders in a folder, at least one, in natural order."""
    names = (path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    found = tuple(sorted(names, key=natural_key))
    if not found:
        raise DataError(f"{folder} has no sequences; each is a folder of PNG files")
    return found


def check_folders(images: Path, annotations: Path) -> None:
    """Refuse a video that lacks its frames or its masks."""
    for folder, kind in ((images, "frames"), (annotations, "masks")):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder, which should hold the {kind} of {images.name}")


def sequences_folder(folder: Path, resolution: str | None = None) -> Path:
    """The folder of the videos, past one of resolutions."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; DAVIS has JPEGImages and Annotations side by side")
    if resolution is not None:
        if not (folder / resolution).is_dir():
            raise DataError(f"{folder / resolution}: no such folder; choose another resolution")
        return folder / resolution
    between = sorted(
        child.name for child in folder.iterdir() if child.is_dir() and any(p.is_dir() for p in child.iterdir())
    )
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


def _listed(path: Path) -> tuple[str, ...]:
    """The sequences of a list: their names, or, as in DAVIS 2016, the paths of every frame and mask."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of sequences ({error}); get it again") from error
    names = tuple(dict.fromkeys(Path(first).parent.name if "/" in first else first for first, *_ in lines))
    if not names:
        raise DataError(f"{path} lists no sequences; get it again")
    return names
