"""YouTube-VOS 2018 and 2019: ``train`` and ``valid``, each with ``JPEGImages``, ``Annotations`` and ``meta.json``.

Frames are every fifth of the video, as their names say. In valid an object's mask is given on the frame where it
begins, which may be a later one, and nothing is said of the others there. The splits with every frame
(``valid_all_frames``, also under ``all_frames``) have the masks of the plain split; masks are wanted of the frames that
``meta.json`` lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .base import Dataset
from .listed import ListedVideos
from .maps import check_folders, split_folder, split_folders, video_folders
from .records import field

NAME = "youtube-vos"
_META = "meta.json"
_EVERY = "_all_frames"


def detect(root: Path) -> bool:
    """Whether there is a ``meta.json`` beside the videos of a split."""
    return (root / _META).is_file() or any((path / _META).is_file() for path in split_folders(root).values())


def splits(root: Path) -> tuple[str, ...]:
    """The folders, and those with every frame; none for the folder of one split."""
    folders = split_folders(root)
    return (*folders, *(f"{name}{_EVERY}" for name in folders if _every_frame(root, name) is not None))


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the videos of a split.

    Raises:
        DataError: A video lacks its frames or masks, or ``meta.json`` is damaged.
    """
    plain = None if split is None else split.removesuffix(_EVERY)
    folder = split_folder(root, plain)
    images = folder / "JPEGImages" if split == plain or plain is None else _every_frame(root, plain)
    assert images is not None
    opener = ListedVideos(images, folder / "Annotations", folder / _META, _listed_frames)
    names = video_folders(opener.annotations)
    for name in names:
        check_folders(images / name, opener.annotations / name)
    return Dataset(NAME, root, names, opener, split)


def _every_frame(root: Path, split: str) -> Path | None:
    places = (root / place / f"{split}{_EVERY}" / "JPEGImages" for place in (".", "all_frames"))
    return next((place for place in places if place.is_dir()), None)


def _listed_frames(objects: Mapping[str, object], where: str) -> tuple[str, ...]:
    names = (field(entry, "frames", list, f"{where}, object {key}") for key, entry in objects.items())
    return tuple(sorted({str(name) for frames in names for name in frames}))
