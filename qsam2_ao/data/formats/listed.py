"""What YouTube-VOS and LVOS share: beside the videos of a split, a JSON file lists the objects of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...errors import DataError
from ..listing import list_pictures
from .base import Video
from .maps import open_maps
from .records import field, read_json

#: From the objects of a video, and where they stand, to the frames of which masks are wanted; ``None`` for all.
Requested = Callable[[Mapping[str, object], str], "tuple[str, ...] | None"]


@dataclass(frozen=True)
class ListedVideos:
    """Opens the videos of one split.

    Attributes:
        images: The folder of the videos' frames.
        annotations: The folder of their masks.
        meta: The JSON file: ``videos``, and in each of them ``objects``, by their ids.
        requested: Finds the frames of which masks are wanted.
    """

    images: Path
    annotations: Path
    meta: Path
    requested: Requested

    @cached_property
    def _videos(self) -> Mapping[str, object]:
        return field(read_json(self.meta), "videos", dict, self.meta)

    def __getstate__(self) -> dict[str, object]:
        """Without the file's content, which every process reads itself."""
        return {key: value for key, value in self.__dict__.items() if key != "_videos"}

    def __call__(self, name: str) -> Video:
        """Open a video."""
        where = f"{self.meta}, video {name}"
        if name not in self._videos:
            raise DataError(f"{where}: it is not there, but {self.annotations / name} is; get the file again")
        objects = field(self._videos[name], "objects", dict, where)
        if strange := [key for key in objects if not key.isdecimal() or not 0 < int(key) < 255]:
            raise DataError(f"{where}: an object is called {strange[0]!r}, and ids are 1 to 254")
        requested = self.requested(objects, where)
        masks = {path.stem for path in list_pictures(self.annotations / name)}
        # Fewer masks than listed frames, or as many as objects at most: each shows the objects that begin there, and
        # says nothing of the others.
        complete = len(masks) > len(objects) if requested is None else masks.issuperset(requested)
        return open_maps(
            self.images / name,
            self.annotations / name,
            known_ids=tuple(sorted(map(int, objects))),
            requested=requested,
            complete=complete,
        )
