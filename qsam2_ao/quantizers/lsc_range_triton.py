"""The range of a training call of LSC on an NVIDIA GPU, in Triton: two kernels for what torch takes dozens for.

The first reads the tensor, and gives count, mean, squared deviation and extremes of each of its parts. The second joins
them, lets the running statistics of an activation follow, and makes the clip range.
"""

# Functions under triton.jit are of Triton's language: their arguments have no types of Python.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grids import MIN_SCALE, ClipRange, Grid
from .lsc_triton import _dense, _place, _rounded, _Segments, _segments
from .pool import Pool

_PARTS = 1024
"""That a program joins at a time."""


def activation_range(
    x: Tensor,
    grid: Grid,
    base: Sequence[Tensor],
    earlier: Pool | None,
    running: Sequence[Tensor],
    alphas: tuple[Tensor, Tensor],
    momentum: float,
    factor: float,
    learns: bool,
) -> tuple[ClipRange, Pool | None]:
    """The range that holds in a step; where the call is learned from, running statistics are brought up to date.

    Args:
        x: Any shape, at least one element, float32, float16 or bfloat16.
        grid: Of activations.
        base: Mean, deviation and extremes of the step's beginning, float32 of shape [1], as the following tensors.
        earlier: What the step's calls before saw; None where there were none.
        running: Mean, deviation and extremes, which are written.
        alphas: alpha_bar, and the logarithm of alpha.
        momentum: Of the running statistics.
        factor: LSQ's gradient scale.
        learns: Whether to take ``x`` in.

    Returns:
        The range, and what the step's calls saw with this one; None where it is not learned from.
    """
    x = _dense(x, "tensor")
    segments = _segments(x, "tensor", None)
    parts = _parts(x, segments) if learns else x.new_empty(0, dtype=torch.float32)
    pool = x.new_empty(4, dtype=torch.float32)
    clip = _empty_range(alphas[0])
    count = x.numel() + (earlier.count if earlier else 0)
    before = running if earlier is None else earlier[1:]  # not read where there is none
    _launch(
        *(segments, parts, base, before, pool, running, alphas, clip, grid),
        *(x.numel() / count, 1 - momentum, factor),
        RUNNING=True,
        LEARNS=learns,
        JOINS=earlier is not None,
    )
    return clip, Pool(count, *pool.split(1)) if learns else None


def weight_range(
    weight: Tensor,
    grid: Grid,
    granularity: str,
    group_size: int | None,
    own: Sequence[Tensor],
    alphas: tuple[Tensor, Tensor],
    factor: float,
) -> ClipRange:
    """The range of a weight about its own statistics, which are written.

    Args:
        weight: [out, ...], float32, float16 or bfloat16.
        grid: Of weights.
        granularity: "tensor", "channel" or "group".
        group_size: Inputs per group.
        own: Mean, deviation and extremes, float32 of shape [1], [out] or [out, n_groups], as the alphas.
        alphas: alpha_bar, and the logarithm of alpha.
        factor: LSQ's gradient scale.
    """
    weight = _dense(weight, granularity)
    segments = _segments(weight, granularity, group_size)
    clip = _empty_range(alphas[0])
    _launch(
        *(segments, _parts(weight, segments), own, own, own[0], own, alphas, clip, grid, 1.0, 1.0, factor),
        RUNNING=False,
        LEARNS=True,
        JOINS=False,
    )
    return clip


def _empty_range(like: Tensor) -> ClipRange:
    scale, zero_point, per_alpha, factor = (torch.empty_like(like) for _ in range(4))
    return ClipRange(scale, zero_point, per_alpha, torch.empty_like(like, dtype=torch.bool), factor)


def _parts(x: Tensor, segments: _Segments) -> Tensor:
    """Mean, sum of squared deviations and extremes of the parts of segments: ``[4, segments, parts]``."""
    across, along = segments.tile
    parts = x.new_empty((4, segments.number, segments.grid[0]), dtype=torch.float32)
    _statistics[segments.grid](x, parts, *segments, ACROSS=across, ALONG=along)
    return parts


def _launch(
    segments: _Segments,
    parts: Tensor,
    base: Sequence[Tensor],
    earlier: Sequence[Tensor],
    pool: Tensor,
    statistics: Sequence[Tensor],
    alphas: tuple[Tensor, Tensor],
    clip: ClipRange,
    grid: Grid,
    share: float,
    step: float,
    factor: float,
    **constants: bool,
) -> None:
    block = min(_PARTS, triton.next_power_of_2(segments.grid[0]))
    across = min(_PARTS // block, 128, triton.next_power_of_2(segments.number))
    _range[(triton.cdiv(segments.number, across),)](
        *(parts, *base, *earlier, pool, *statistics, *alphas, *clip, *segments, segments.grid[0]),
        *(share, step, factor, float(grid.quant_min), float(grid.quant_max), 2 / grid.steps, MIN_SCALE),
        CENTRED=grid.zero_centred,
        WITH_ZERO=grid.name in ("asymmetric", "activation"),
        ACROSS=across,
        BLOCK=block,
        ALONG=segments.tile[1],
        **constants,
    )


@triton.jit
def _statistics(x, parts, count, size, groups, row, ACROSS: tl.constexpr, ALONG: tl.constexpr):
    at, inside, segment, _ = _place(count, size, groups, row, False, ACROSS, ALONG)
    value = tl.load(x + at, inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 1) / tl.maximum(tl.sum(inside.to(tl.int32), 1), 1).to(tl.float32)
    distance = tl.where(inside, value - mean[:, None], 0.0)
    to = parts + segment.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    plane = tl.num_programs(0).to(tl.int64) * count
    tl.store(to, mean, segment < count)
    tl.store(to + plane, tl.sum(distance * distance, 1), segment < count)
    tl.store(to + 2 * plane, tl.min(tl.where(inside, value, float("inf")), 1), segment < count)
    tl.store(to + 3 * plane, tl.max(tl.where(inside, value, float("-inf")), 1), segment < count)


@triton.jit
def _range(
    parts,
    base_mean,
    base_std,
    base_low,
    base_high,
    earlier_mean,
    earlier_var,
    earlier_low,
    earlier_high,
    pool,
    mean_out,
    std_out,
    low_out,
    high_out,
    alpha_bar,
    log_alpha,
    scale_out,
    zero_point_out,
    per_alpha_out,
    at_limit_out,
    factor_out,
    count,
    size,
    groups,
    row,
    number,
    share,
    step,
    factor,
    lowest,
    highest,
    double_step,
    min_scale,
    RUNNING: tl.constexpr,
    LEARNS: tl.constexpr,
    JOINS: tl.constexpr,
    CENTRED: tl.constexpr,
    WITH_ZERO: tl.constexpr,
    ACROSS: tl.constexpr,
    BLOCK: tl.constexpr,
    ALONG: tl.constexpr,
):
    segment = tl.program_id(0) * ACROSS + tl.arange(0, ACROSS)
    inside = segment < count
    if LEARNS:
        mean, var, low, high = _joined(parts, segment, count, size, groups, row, number, CENTRED, ACROSS, BLOCK, ALONG)
        std = tl.sqrt_rn(var)
        if RUNNING:
            if JOINS:  # by Chan's formula
                before = tl.load(earlier_mean + segment, inside, other=0.0)
                distance, variance = mean - before, tl.load(earlier_var + segment, inside, other=0.0)
                mean = before + share * distance
                var = variance + share * (var - variance) + share * (1 - share) * distance * distance
                low = tl.minimum(low, tl.load(earlier_low + segment, inside, other=0.0))
                high = tl.maximum(high, tl.load(earlier_high + segment, inside, other=0.0))
                std = tl.sqrt_rn(var)
            tl.store(pool + segment, mean, inside)
            tl.store(pool + 1 + segment, var, inside)
            tl.store(pool + 2 + segment, low, inside)
            tl.store(pool + 3 + segment, high, inside)
    if RUNNING:
        now_mean = tl.load(base_mean + segment, inside, other=0.0)
        now_std = tl.load(base_std + segment, inside, other=0.0)
        now_low = tl.load(base_low + segment, inside, other=0.0)
        now_high = tl.load(base_high + segment, inside, other=0.0)
        if LEARNS:
            tl.store(mean_out + segment, now_mean + step * (mean - now_mean), inside)
            tl.store(std_out + segment, now_std + step * (std - now_std), inside)
            tl.store(low_out + segment, now_low + step * (low - now_low), inside)
            tl.store(high_out + segment, now_high + step * (high - now_high), inside)
        mean, std, low, high = now_mean, now_std, now_low, now_high
    else:
        tl.store(mean_out + segment, mean, inside)
        tl.store(std_out + segment, std, inside)
        tl.store(low_out + segment, low, inside)
        tl.store(high_out + segment, high, inside)
    # As Grid.clip_range.
    half = tl.load(alpha_bar + segment, inside, other=1.0) * std
    widest = tl.maximum(high, -low) if CENTRED else tl.maximum(high - mean, mean - low)
    steps = highest - lowest
    if WITH_ZERO:
        left, right = tl.minimum(_clamp(mean - half, low, high), 0.0), tl.maximum(_clamp(mean + half, low, high), 0.0)
        free = ((left > low) & (left < 0)).to(tl.float32) + ((right < high) & (right > 0)).to(tl.float32)
        scale = tl.maximum(tl.div_rn(right - left, left * 0 + steps), min_scale)
        zero_point = _rounded(lowest - tl.div_rn(left, scale), lowest, highest)
        per_alpha = tl.div_rn(tl.maximum(free, 1.0) * std, std * 0 + steps)
    else:
        scale = tl.maximum(tl.minimum(half, widest) * double_step, min_scale)
        middle = (lowest + highest) / 2
        zero_point = scale * 0 + middle if CENTRED else middle - tl.div_rn(mean, scale)
        per_alpha = std * double_step
    tl.store(scale_out + segment, scale, inside)
    tl.store(zero_point_out + segment, zero_point, inside)
    tl.store(per_alpha_out + segment, per_alpha, inside)
    tl.store(at_limit_out + segment, half >= widest, inside)
    alpha = tl.exp(tl.load(log_alpha + segment, inside, other=0.0))
    tl.store(factor_out + segment, per_alpha * factor * alpha, inside)


@triton.jit
def _clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def _joined(
    parts,
    segment,
    count,
    size,
    groups,
    row,
    number,
    CENTRED: tl.constexpr,
    ACROSS: tl.constexpr,
    BLOCK: tl.constexpr,
    ALONG: tl.constexpr,
):
    """Mean, variance and extremes of segments from those of their parts; about zero and of zero where centred."""
    length = tl.minimum(size, row - segment % groups * size).to(tl.float32)[:, None]
    i = tl.arange(0, BLOCK)
    parts += segment.to(tl.int64)[:, None] * number + i[None, :]
    plane = tl.full((), 1, tl.int64) * count * number
    mean = tl.zeros((ACROSS,), tl.float32)
    low, high = tl.full((ACROSS,), float("inf"), tl.float32), tl.full((ACROSS,), float("-inf"), tl.float32)
    if not CENTRED:
        for start in range(0, number, BLOCK):
            inside = (segment < count)[:, None] & (start + i < number)[None, :]
            share = _clamp(length - ((start + i) * ALONG)[None, :].to(tl.float32), 0.0, ALONG * 1.0) / length
            mean += tl.sum(share * tl.load(parts + start, inside, other=0.0), 1)
    var = tl.zeros((ACROSS,), tl.float32)
    for start in range(0, number, BLOCK):
        inside = (segment < count)[:, None] & (start + i < number)[None, :]
        share = _clamp(length - ((start + i) * ALONG)[None, :].to(tl.float32), 0.0, ALONG * 1.0) / length
        distance = tl.load(parts + start, inside, other=0.0) - mean[:, None]
        squares = tl.load(parts + plane + start, inside, other=0.0) / length + share * distance * distance
        var += tl.sum(tl.where(inside, squares, 0.0), 1)
        low = tl.minimum(low, tl.min(tl.load(parts + 2 * plane + start, inside, other=float("inf")), 1))
        high = tl.maximum(high, tl.max(tl.load(parts + 3 * plane + start, inside, other=float("-inf")), 1))
    return mean, var, low, high
