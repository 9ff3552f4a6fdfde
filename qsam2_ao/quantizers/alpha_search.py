"""The start value of alpha: the clip range that minimises the quantization error, by a small search."""

from __future__ import annotations

import torch
from torch import Tensor

from .affine import broadcast_qparam, fake_quantize_affine
from .grids import Grid, RangeStats
from .output_error import measures_of, worst_ratio
from .statistics import sum_rows

_COARSE = 24
_FINE = 6
_REFINEMENTS = 2
_SMALLEST_ALPHA = 0.1
_CHUNK_ELEMENTS = 1 << 22
_SMALL_ELEMENTS = 1 << 14
"""Below, calling torch's operators takes longer than what they compute."""


def quantize_with_alpha(
    x: Tensor, stats: RangeStats, alpha: Tensor, grid: Grid, group_size: int | None = None
) -> Tensor:
    """Fake-quantize ``x`` in the range that ``stats`` and ``alpha`` give, in float32.

    Args:
        x: Weight of shape [out, ...], or any tensor for statistics of shape [1].
        stats: Statistics of shape [1], [out] or [out, n_groups].
        alpha: Same shape as the statistics.
        grid: The grid.
        group_size: For statistics per group.
    """
    scale, zero_point = grid.clip_range(stats, alpha)[:2]
    shape = tuple(x.shape)
    return fake_quantize_affine(
        x,
        broadcast_qparam(scale, shape, group_size),
        broadcast_qparam(zero_point, shape, group_size),
        grid.quant_min,
        grid.quant_max,
    )


def search_alpha(
    x: Tensor,
    stats: RangeStats,
    grid: Grid,
    granularity: str = "tensor",
    group_size: int | None = None,
    gram: Tensor | None = None,
) -> Tensor:
    """Alpha with the least squared quantization error, per scale.

    A geometric grid from 0.1 standard deviations to the observed extremes, refined twice around its minimum.
    With ``gram`` the range is then refined on the error of the layer's output, tr(E G E^T) of the weight
    error E; where inputs are massive, it is to be less also with them held down.

    Args:
        x: Weight of shape [out, ...], or any sample of an activation with granularity "tensor".
        stats: Statistics of ``x`` in the granularity's shape.
        grid: Grid to quantize on.
        granularity: "tensor", "channel" or "group".
        group_size: Inputs per group, for "group".
        gram: X^T X of the layer's inputs, centred where a bias makes up for the mean, [K, K] with K =
            ``x[0].numel()``. Per group its diagonal blocks are used, as if the groups' errors were independent.

    Returns:
        Alpha in the statistics' shape, float32, positive.
    """
    x = x.detach().float()
    widest = torch.maximum(stats.high - stats.mean, stats.mean - stats.low)
    largest = torch.where(stats.std > 0, widest / stats.std.clamp_min(torch.finfo(torch.float32).tiny), 1.0)
    largest = largest.clamp(_SMALLEST_ALPHA, 1e6)

    best = torch.ones_like(largest)
    least = torch.full_like(largest, float("inf"))

    def consider(alpha: Tensor, error: Tensor) -> None:
        nonlocal best, least
        better = error < least
        best, least = torch.where(better, alpha, best), torch.where(better, error, least)

    def consider_all(alphas: list[Tensor]) -> None:
        for alpha, error in zip(alphas, _errors(x, stats, alphas, grid, granularity, group_size), strict=True):
            consider(alpha, error)

    def error(alpha: Tensor, measure: Tensor) -> Tensor:
        return _error(x, stats, alpha, grid, granularity, group_size, measure)

    step = (_SMALLEST_ALPHA / largest).pow(1 / (_COARSE - 1))
    consider_all([largest * step**k for k in range(_COARSE)])
    for _ in range(_REFINEMENTS):
        centre, step = best, step.pow(2 / (_FINE + 2))
        powers = [step**k for k in range(1, _FINE // 2 + 1)]
        consider_all([a for p in powers for a in (centre * p, torch.minimum(centre / p, largest))])
    if gram is not None:
        measures = measures_of(gram.to(x))
        centre = best
        references = torch.stack([error(centre, measure) for measure in measures])
        least = torch.ones_like(largest)
        for ratio in (0.95, 1.05, 0.9, 1.1, 0.8, 1.2, 0.7, 1.4):
            alpha = torch.minimum(centre * ratio, largest)
            consider(alpha, worst_ratio(torch.stack([error(alpha, measure) for measure in measures]), references))
    return best


def _errors(
    x: Tensor, stats: RangeStats, alphas: list[Tensor], grid: Grid, granularity: str, group_size: int | None
) -> list[Tensor]:
    """Squared errors of several alphas: those of a small weight as one weight of so many times the rows."""
    if granularity == "tensor" or x.numel() > _SMALL_ELEMENTS:
        return [_error(x, stats, alpha, grid, granularity, group_size, None) for alpha in alphas]
    times = len(alphas)
    rows = x.flatten(1).repeat(times, 1)
    repeated = RangeStats(*(field.repeat(times, *[1] * (field.dim() - 1)) for field in stats))
    return list(_error(rows, repeated, torch.cat(alphas), grid, granularity, group_size, None).chunk(times))


def _error(
    x: Tensor,
    stats: RangeStats,
    alpha: Tensor,
    grid: Grid,
    granularity: str,
    group_size: int | None,
    gram: Tensor | None,
) -> Tensor:
    """Squared error per scale, computed in chunks of rows so that temporaries stay small."""
    rows = x.reshape(x.shape[0], -1) if x.dim() > 1 else x.reshape(1, -1)
    per_chunk = max(1, _CHUNK_ELEMENTS // max(1, rows.shape[1]))
    errors = []
    for start in range(0, rows.shape[0], per_chunk):
        part = rows[start : start + per_chunk]
        if granularity == "tensor":
            part_stats, part_alpha = stats, alpha
        else:
            part_stats = RangeStats(*(field[start : start + per_chunk] for field in stats))
            part_alpha = alpha[start : start + per_chunk]
        difference = quantize_with_alpha(part, part_stats, part_alpha, grid, group_size).sub_(part)
        squared = difference.square() if gram is None else _weigh(difference, gram, granularity, group_size)
        errors.append(sum_rows(squared, granularity, group_size))
    if granularity == "tensor":
        return torch.stack(errors).sum(0)
    return torch.cat(errors)


def _weigh(difference: Tensor, gram: Tensor, granularity: str, group_size: int | None) -> Tensor:
    """Elements of (E G) * E, whose row sums are the output errors; per group with G's diagonal blocks."""
    if granularity != "group":
        return (difference @ gram) * difference
    assert group_size is not None
    blocks = [gram[i : i + group_size, i : i + group_size] for i in range(0, gram.shape[0], group_size)]
    parts = [e @ block for e, block in zip(difference.split(group_size, dim=1), blocks, strict=True)]
    return torch.cat(parts, dim=1) * difference
