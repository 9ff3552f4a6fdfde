"""Several data sets as one, drawn from by weight: ``DAVIS:0.7,MOSE:0.3``."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from .datasets import FORMATS, open_dataset
from .formats.base import Dataset, Video

#: With fewer videos all are trained on, and judged by other clips of the same.
_FEWEST_TO_HOLD_OUT = 5


@dataclass(frozen=True)
class Source:
    """One data set as it is named.

    Attributes:
        path: Its folder or file.
        weight: How often it is drawn from, beside the others.
        format: As for :func:`~qsam2_ao.data.datasets.open_dataset`.
        split: Likewise; ``None`` where it was not said.
    """

    path: str
    weight: float = 1.0
    format: str = "auto"
    split: str | None = None


def parse_sources(text: str) -> tuple[Source, ...]:
    """Read ``[FORMAT=]PATH[@SPLIT][:WEIGHT],...``.

    Args:
        text: Such as "DAVIS" or "DAVIS:0.7,coco=COCO@train2017:0.3". What is a file or folder as it stands is one,
            whatever signs are in it.

    Returns:
        The data sets; without weights all are drawn from alike.

    Raises:
        DataError: A weight is no positive number, or is missing where others have one.

    Example:
        >>> parse_sources("DAVIS:3,coco=COCO@train2017:1")[1]
        Source(path='COCO', weight=1.0, format='coco', split='train2017')
    """
    if os.path.exists(text):
        return (Source(text),)
    sources, weighted = [], 0
    for entry in text.split(","):
        rest, colon, number = entry.strip().rpartition(":")
        if os.path.exists(entry.strip()) or not colon:
            rest, colon = entry.strip(), ""
        weight = 1.0
        if colon:
            try:
                weight = float(number)
            except ValueError:
                weight = math.nan
            if not (math.isfinite(weight) and weight > 0):
                raise DataError(f"{entry.strip()}: the weight {number!r} is no positive number; give PATH:0.7")
            weighted += 1
        sources.append(_source(rest, weight))
    if weighted not in (0, len(sources)):
        raise DataError(f"{text}: some of its data sets have a weight and others have none; give all of them one")
    return tuple(sources)


def _source(text: str, weight: float) -> Source:
    if os.path.exists(text):
        return Source(text, weight)
    format, equals, path = text.partition("=")
    if not equals or format not in FORMATS:
        format, path = "auto", text
    folder, at, split = path.rpartition("@")
    if os.path.exists(path) or not at:
        folder, split = path, ""
    if not folder:
        raise DataError(f"{text!r} names no data set; give [FORMAT=]PATH[@SPLIT][:WEIGHT], and several with a comma")
    return Source(folder, weight, format, split or None)


@dataclass(frozen=True)
class Mixture:
    """Data sets with masks, and how often each is drawn from.

    Attributes:
        datasets: The data sets, none of them empty.
        weights: One for each.

    Example:
        >>> mixture = Mixture.open("DAVIS:3,realdata/train/nuclei:1")
        >>> mixture.pick(np.random.default_rng(0)).name
        'bear'
    """

    datasets: tuple[Dataset, ...]
    weights: tuple[float, ...]

    @classmethod
    def open(cls, text: str, *, default_split: str | None = "train") -> Mixture:
        """Open the data sets of a text; see :func:`parse_sources`.

        Args:
            text: Their names.
            default_split: Of those that have splits and whose name says none.

        Raises:
            DataError: One cannot be opened, or has no videos or masks.
        """
        sources = parse_sources(text)
        return cls(
            tuple(
                open_dataset(s.path, s.format, split=s.split, default_split=default_split).labelled() for s in sources
            ),
            tuple(s.weight for s in sources),
        )

    def pick(self, rng: np.random.Generator) -> Video:
        """A random video: a data set by its weight, and any video of it."""
        share = np.array(self.weights) / sum(self.weights)
        dataset = self.datasets[int(rng.choice(len(share), p=share))]
        return dataset[int(rng.integers(len(dataset)))]

    def hold_out(self) -> tuple[Mixture, Mixture]:
        """Every tenth video of each data set, at least one, set aside to judge a training by.

        Returns:
            Those to train on, and those to judge by. Of a data set with fewer than five none can be spared: both have
            all of them.
        """
        pairs = [_divided(dataset) for dataset in self.datasets]
        return Mixture(tuple(a for a, _ in pairs), self.weights), Mixture(tuple(b for _, b in pairs), self.weights)

    @property
    def indivisible(self) -> tuple[Dataset, ...]:
        """The data sets with too few videos to set any aside."""
        return tuple(dataset for dataset in self.datasets if len(dataset) < _FEWEST_TO_HOLD_OUT)

    def describe(self) -> str:
        """The data sets, for messages."""
        return ", ".join(
            f"{dataset.root}{'' if dataset.split is None else f' ({dataset.split})'}" for dataset in self.datasets
        )


def _divided(dataset: Dataset) -> tuple[Dataset, Dataset]:
    if len(dataset) < _FEWEST_TO_HOLD_OUT:
        return dataset, dataset
    names: Sequence[str] = dataset.names
    return dataset.select([name for i, name in enumerate(names) if i % 10 != 4]), dataset.select(names[4::10])
