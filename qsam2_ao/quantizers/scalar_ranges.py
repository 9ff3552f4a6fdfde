"""The range of an activation on the CPU, in Python numbers: their arithmetic is much cheaper than small tensors'."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from .grids import MIN_SCALE, Grid

LARGEST_LOG_ALPHA = 88.0
"""Where exp overflows float32; the range is at its limit long before."""
_TOGETHER = 1 << 13
"""Elements whose squares are summed in float32."""


class ScalarStats(NamedTuple):
    """:class:`~qsam2_ao.quantizers.grids.RangeStats` of one tensor."""

    mean: float
    std: float
    low: float
    high: float


class ScalarRange(NamedTuple):
    """:class:`~qsam2_ao.quantizers.grids.ClipRange` of one scale; ``scale`` is a float32 number."""

    scale: float
    zero_point: float
    scale_per_alpha: float
    at_limit: bool


def on_host(x: Tensor) -> bool:
    """Whether numbers may be read from ``x``: it is on the CPU, and torch.compile is not at work."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def scalar_statistics(x: Tensor) -> ScalarStats:
    """Statistics of a whole activation tensor.

    Args:
        x: Any shape, at least one element, any floating dtype; on the CPU.

    Returns:
        Of a tensor with NaN or infinity, or whose squares overflow, at least one is not finite.
    """
    flat = as_vector(x.detach())
    low, high = torch.aminmax(flat)
    flat = flat.float()
    # torch's CPU var_mean is some 10 times slower than these two reductions, which lose digits only when the
    # spread is small beside the mean. Long dot products of equal numbers drift.
    mean = flat.sum().item() / flat.numel()
    var = sum(torch.dot(part, part).item() for part in flat.split(_TOGETHER)) / flat.numel() - mean * mean
    if not var > 1e-2 * mean * mean:
        var, mean = (value.item() for value in torch.var_mean(flat, correction=0))
    return ScalarStats(mean, math.sqrt(var), low.item(), high.item())


def as_vector(x: Tensor) -> Tensor:
    """The elements of ``x`` in the order that they lie in memory; a copy only where there are gaps between them."""
    if not x.is_contiguous():
        x = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))
    return x.reshape(-1)


def scalar_clip_range(grid: Grid, mean: float, std: float, low: float, high: float, alpha: float) -> ScalarRange:
    """:meth:`~qsam2_ao.quantizers.grids.Grid.clip_range` of an activation, in double precision.

    Args:
        grid: An activation's grid.
        mean: Finite, as the other numbers.
        std: Standard deviation.
        low: Smallest observed value.
        high: Largest observed value.
        alpha: Half width of the range in standard deviations.
    """
    half = alpha * std
    left, right = mean - half, mean + half
    # With neither end free, alpha is at its limit and moves the end that it reaches.
    free_ends = (low < left < 0) + (0 < right < high)
    left, right = min(max(left, low), 0.0), max(min(right, high), 0.0)
    scale: float = struct.unpack("f", struct.pack("f", max((right - left) / grid.steps, MIN_SCALE)))[0]
    zero_point = min(max(round(grid.quant_min - left / scale), grid.quant_min), grid.quant_max)
    at_limit = half >= high - mean and half >= mean - low
    return ScalarRange(scale, float(zero_point), max(free_ends, 1) * std / grid.steps, at_limit)
