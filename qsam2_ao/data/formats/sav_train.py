"""SA-V train: ``VIDEO.mp4`` and ``VIDEO_manual.json``, in folders ``sav_000`` and so on.

The masklets are run lengths of every object on every fourth frame, and may overlap; those of ``VIDEO_auto.json``, which
a model made, are not read. Frames that SAM2's script extracted (``VIDEO/00004.jpg``) are taken where there is no MP4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from ..listing import list_pictures, natural_key
from ..pictures import FrameReader
from .base import Dataset, Frames, PictureFiles, Video
from .masklets import Masklets, read_masklets
from .video_file import VideoFile

NAME = "sav-train"
_MASKS = "_manual.json"


def detect(root: Path) -> bool:
    """Whether there are masklets in it, or one folder down."""
    return bool(_files(root, f"*{_MASKS}"))


def splits(root: Path) -> tuple[str, ...]:
    """None: it is train."""
    return ()


def open_split(root: Path, split: str | None) -> Dataset:
    """Open the videos.

    Raises:
        DataError: A video has no masklets, or masklets have no video.
    """
    masks = {path.name.removesuffix(_MASKS): path for path in _files(root, f"*{_MASKS}")}
    videos = {path.stem: path for path in _files(root, "*.mp4")}
    if missing := sorted(videos.keys() - masks.keys()):
        raise DataError(
            f"{videos[missing[0]]} has no {missing[0]}{_MASKS} beside it{_others(missing)}; get the masks, or move the "
            "video away"
        )
    frames = {name: videos.get(name, path.with_name(name)) for name, path in masks.items()}
    if missing := sorted(name for name, path in frames.items() if name not in videos and not path.is_dir()):
        raise DataError(f"{masks[missing[0]]} has no {missing[0]}.mp4 beside it{_others(missing)}; get the video")
    if not masks:
        raise DataError(f"{root} has no files called VIDEO{_MASKS}, which SA-V has beside its videos")
    return Dataset(NAME, root, tuple(sorted(masks, key=natural_key)), _Opener(masks, frames))


def _files(root: Path, pattern: str) -> list[Path]:
    return [*sorted(root.glob(pattern)), *sorted(root.glob(f"*/{pattern}"))]


def _others(missing: Sequence[str]) -> str:
    return f" (nor have {len(missing) - 1} others)" if len(missing) > 1 else ""


@dataclass(frozen=True)
class _Opener:
    masks: Mapping[str, Path]
    frames: Mapping[str, Path]

    def __call__(self, name: str) -> Video:
        path, source = self.masks[name], self.frames[name]
        rows, object_ids, every = read_masklets(path)
        frames, names = _frames(source)
        places = {int(stem): t for t, stem in enumerate(names) if stem.isdecimal()}
        numbers = range(0, every * len(rows), every)
        wanted = [number for number, row in zip(numbers, rows, strict=True) if row is not None]
        if missing := [number for number in wanted if number not in places]:
            raise DataError(
                f"{source} has no frame {missing[0]}, of which {path.name} has masks: the video has {len(names)} "
                "frames and ends early; get it again"
            )
        by_frame = {places[number]: row for number, row in zip(numbers, rows, strict=True) if row is not None}
        return Video(name, frames, names, Masklets(path, by_frame, object_ids), overlapping=True)


def _frames(source: Path) -> tuple[Frames, tuple[str, ...]]:
    """Of a video file, or of a folder of extracted frames; and their names, which say their numbers in the video."""
    if not source.is_dir():
        frames = VideoFile(source)
        return frames, tuple(f"{t:05d}" for t in range(len(frames)))
    pictures = list_pictures(source)
    if not pictures:
        raise DataError(f"{source} has no frames; extract them from the video again")
    return PictureFiles(pictures, FrameReader(pictures)), tuple(path.stem for path in pictures)
