"""What activation quantizers remember of the calibration data: exact statistics and a bounded sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .grids import RangeStats
from .statistics import merge_across_ranks, merge_statistics, tensor_statistics, world_size

_SAMPLES_PER_CALL = 1 << 14
_SAMPLES = 1 << 18


class CalibrationSample:
    """Statistics and a bounded sample of every tensor seen while calibrating."""

    def __init__(self) -> None:
        self.stats: list[RangeStats] = []
        self.counts: list[int] = []
        self.samples: list[Tensor] = []
        self._every = 1  # of each call's share: all calls count alike, however many there are

    def add(self, x: Tensor) -> None:
        """Take in one tensor; an empty one is ignored."""
        if x.numel() == 0:
            return
        self.stats.append(tensor_statistics(x))
        self.counts.append(x.numel())
        self.samples.append(_thinned(even_sample(x), self._every))
        if sum(sample.numel() for sample in self.samples) > _SAMPLES:
            self.samples = [_thinned(sample, 2) for sample in self.samples]
            self._every *= 2

    def progress(self) -> dict[str, Any]:
        """All that was seen so far, as plain values and tensors that :meth:`go_on` takes."""
        stats = [tuple(stats) for stats in self.stats]
        return {"stats": stats, "counts": self.counts, "samples": self.samples, "every": self._every}

    def go_on(self, progress: Mapping[str, Any], device: torch.device) -> None:
        """Continue from another one's :meth:`progress`.

        Args:
            progress: What it gave.
            device: Where the activations are.
        """
        self.stats = [RangeStats(*(value.to(device) for value in stats)) for stats in progress["stats"]]
        self.counts = list(progress["counts"])
        self.samples = [sample.to(device) for sample in progress["samples"]]
        self._every = progress["every"]

    def statistics(self, device: torch.device | None = None) -> RangeStats | None:
        """Statistics of everything seen, on all data-parallel ranks; shape [1] each, None if nothing was.

        Args:
            device: Where a rank that saw nothing makes them.
        """
        if self.counts:
            columns = RangeStats(*(torch.cat(field) for field in zip(*self.stats, strict=True)))
            merged = merge_statistics(columns, torch.tensor(self.counts, device=columns.mean.device))
        elif world_size() == 1:
            return None
        else:
            merged = RangeStats(*torch.zeros(4, 1, device=device))
        if world_size() > 1:
            merged = merge_across_ranks(merged, sum(self.counts))
            if not self.counts and bool(merged.mean.isnan()):  # nobody saw anything
                return None
        return merged

    def sample(self) -> Tensor:
        """The sample, one float32 vector."""
        return torch.cat(self.samples) if self.samples else torch.empty(0)


def _thinned(sample: Tensor, every: int) -> Tensor:
    """One in so many elements; a copy, since a view would keep all of them."""
    return sample if every == 1 else sample[::every].clone()


def even_sample(x: Tensor) -> Tensor:
    """About 16k elements of ``x`` at an even stride, float32."""
    # An odd stride does not fall in step with the power-of-two shapes of feature maps.
    stride = max(1, x.numel() // _SAMPLES_PER_CALL) | 1
    # A copy: a view would keep the whole activation alive.
    return x.detach().flatten()[::stride].clone(memory_format=torch.contiguous_format).float()
