"""Statistics of an activation pooled over the calls of a training step, in Python numbers or in tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Pool(NamedTuple):
    """Count, mean, variance and extremes of everything seen; all Python numbers, or all tensors of shape [1].

    Example:
        >>> Pool.of((0.0, 1.0, -2.0, 2.0), 10).joined(Pool.of((3.0, 1.0, 1.0, 5.0), 5)).mean
        1.0
    """

    count: Any
    mean: Any
    var: Any
    low: Any
    high: Any

    @classmethod
    def of(cls, stats: Sequence[Any], count: Any) -> Pool:
        """The pool of one tensor.

        Args:
            stats: Its mean, (population) standard deviation, and extremes.
            count: Its number of elements.
        """
        mean, std, low, high = stats
        return cls(count, mean, std * std, low, high)

    def joined(self, other: Pool) -> Pool:
        """The pool of the union, by Chan's formula: as exact as one pass over all of it."""
        count = self.count + other.count
        share, distance = other.count / count, other.mean - self.mean
        return Pool(
            count,
            self.mean + share * distance,
            self.var + share * (other.var - self.var) + share * (1 - share) * distance * distance,
            _least(self.low, other.low),
            _greatest(self.high, other.high),
        )

    def statistics(self) -> tuple[Any, Any, Any, Any]:
        """Mean, standard deviation and extremes."""
        return self.mean, self.var**0.5, self.low, self.high


def _least(a: Any, b: Any) -> Any:
    return torch.minimum(a, b) if isinstance(a, Tensor) else min(a, b)


def _greatest(a: Any, b: Any) -> Any:
    return torch.maximum(a, b) if isinstance(a, Tensor) else max(a, b)
