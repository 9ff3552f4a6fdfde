"""Means and spreads over seeds, and paired bootstrap intervals over videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import DataError
from .store import ExperimentResult


@dataclass(frozen=True)
class Spread:
    """A metric over the seeds of one method at one setting.

    Attributes:
        mean: Mean.
        std: Standard deviation (of the sample); 0 for one seed.
        seeds: How many seeds.
    """

    mean: float
    std: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.std:.1f}" if self.seeds > 1 else f"{self.mean:.1f}"


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another, in percentage points.

    Attributes:
        value: Difference of the means over seeds.
        low: Lower end of the bootstrap interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of a metric's values, one per seed."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, len(values))


def paired_bootstrap(
    ours: Iterable[ExperimentResult],
    theirs: Iterable[ExperimentResult],
    metric: str,
    *,
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """The difference of two methods on the same videos, with a percentile interval over resampled videos.

    The figures of the seeds are averaged per video first; whole videos are drawn, since the objects of one are not
    independent.

    Args:
        ours: Experiments with the first method, one per seed.
        theirs: Experiments with the second method, on the same videos.
        metric: For example "J&F".
        draws: How many times the videos are resampled.
        level: Coverage of the interval.
        seed: Seed of the draws.

    Raises:
        DataError: The experiments are not of the same videos, or there are none.

    Example:
        >>> better = [{"sums": {"J&F": [80.0, 90.0]}, "counts": {"J&F": [1, 1]}}]
        >>> worse = [{"sums": {"J&F": [75.0, 80.0]}, "counts": {"J&F": [1, 1]}}]
        >>> paired_bootstrap(better, worse, "J&F").low > 0
        True
    """
    (own, own_counts), (other, other_counts) = _per_video(ours, metric), _per_video(theirs, metric)
    if not np.array_equal(own_counts, other_counts):
        raise DataError(f"{metric}: the two methods were not measured on the same videos")
    difference = own - other
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(difference), size=(draws, len(difference)))
    values = difference[drawn].sum(1) / np.maximum(own_counts[drawn].sum(1), 1)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(difference.sum() / own_counts.sum()), float(low), float(high))


def _per_video(experiments: Iterable[ExperimentResult], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the objects of each video, averaged over the experiments, and the numbers of objects."""
    experiments = list(experiments)
    if not experiments:
        raise DataError(f"{metric}: there are no results to compare")
    counts = np.array(experiments[0]["counts"][metric])
    if any(experiment["counts"][metric] != experiments[0]["counts"][metric] for experiment in experiments):
        raise DataError(f"{metric}: the seeds were not measured on the same videos")
    return np.mean([experiment["sums"][metric] for experiment in experiments], axis=0), counts
