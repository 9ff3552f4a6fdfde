"""Videos and pictures with masks to evaluate on, by name: a data set's folder, or "embedded"."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.datasets import open_dataset
from ..data.formats import lvos, youtube_vos
from ..data.procedural import generate_split
from ..data.types import VideoSequence
from ..errors import DataError
from ..evaluation.protocol import Protocol
from ..evaluation.tally import Metric
from ..workspace import fingerprint
from . import EMBEDDED

VIDEOS, FRAMES = 64, 16
"""Of the procedural test split, where nothing else is said."""


@dataclass(frozen=True)
class LabelledVideos:
    """Videos with masks.

    Attributes:
        sequences: The videos, opened when they are asked for.
        names: Theirs.
        about: What a report says of them: data, format, split.
        pictures: Whether each is a single picture, of which J&F has no meaning.
        protocol: What they are usually evaluated with.
        metric: Likewise.
    """

    sequences: Sequence[VideoSequence]
    names: tuple[str, ...]
    about: dict[str, Any]
    pictures: bool
    protocol: Protocol
    metric: Metric

    def fingerprint(self, without: Iterable[str | os.PathLike[str] | None] = ()) -> list[Any]:
        """What tells them from others, and from themselves before they were changed: JSON-able.

        Args:
            without: Files and folders among them that do not count.
        """
        return [
            fingerprint(self.about["data"], without),
            self.about["format"],
            self.about["split"],
            list(self.names),
            self._shape(),
        ]

    def _shape(self) -> int:
        return len(self.sequences[0].frames)


def labelled_videos(
    data: str,
    *,
    format: str = "auto",
    split: str | None = None,
    sequences: Sequence[str] | None = None,
    count: int | None = None,
    frames: int | None = None,
) -> LabelledVideos:
    """Open what a model is evaluated on.

    Args:
        data: A data set's folder, or "embedded" for the procedural test split.
        format: As for :func:`~qsam2_ao.data.datasets.open_dataset`.
        split: Likewise; by default "val", where there are splits.
        sequences: Only the videos of these names.
        count: Only the first so many; None for all of a folder, or :data:`VIDEOS` procedural ones.
        frames: Frames of each procedural video; :data:`FRAMES` by default.

    Returns:
        The videos. A folder's are evaluated with the official protocol and the metric of SA-V if its format holds a
        mask for each object or lists those that begin later, else of DAVIS; procedural ones as they are elsewhere in
        this package.

    Raises:
        DataError: There is no such folder, split or video, or the folder has no masks.

    Example:
        >>> labelled_videos("embedded", count=2, frames=3).names
        ('test-00000', 'test-00001')
    """
    if data == EMBEDDED:
        if split not in (None, "test"):
            raise DataError(f"embedded videos are evaluated on their split test, not {split}")
        if format not in ("auto", EMBEDDED):
            raise DataError(f"embedded videos have no format {format}; it is for a data set's folder")
        made = list(generate_split("test", count or VIDEOS, num_frames=frames or FRAMES))
        if sequences is not None:
            by_name = {sequence.name: sequence for sequence in made}
            if absent := [name for name in sequences if name not in by_name]:
                raise DataError(f"there is no embedded video {absent[0]!r}; they are {made[0].name} to {made[-1].name}")
            made = [by_name[name] for name in sequences]
        names = tuple(sequence.name for sequence in made)
        return LabelledVideos(
            made, names, {"data": data, "format": EMBEDDED, "split": "test"}, False, "deployed", "sav"
        )
    dataset = open_dataset(data, format, split=split, sequences=sequences, default_split="val").labelled()[:count]
    if not len(dataset):
        raise DataError(f"{data} has no videos; choose another split")
    about = {"data": str(data), "format": dataset.format, "split": dataset.split}
    # DAVIS's counts the first frame's objects alone.
    later = dataset.format in (lvos.NAME, youtube_vos.NAME)
    metric: Metric = "sav" if later or (not dataset.pictures and dataset[0].overlapping) else "davis"
    return LabelledVideos(dataset, dataset.names, about, dataset.pictures, "official", metric)
