"""Mean, spread and extremes of weights and activations: per tensor, channel or group, and across ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import QConfigError
from .affine import GRANULARITIES
from .grids import RangeStats
from .scalar_ranges import on_host, scalar_statistics


def check_granularity(granularity: str, group_size: int | None) -> None:
    """Refuse an unknown granularity, or a group size that does not go with it.

    Raises:
        QConfigError: Naming the granularity or the group size.
    """
    if granularity not in GRANULARITIES:
        raise QConfigError(f"unknown granularity {granularity!r}: choose one of {', '.join(GRANULARITIES)}")
    if (granularity == "group") != (group_size is not None) or (group_size is not None and group_size < 1):
        raise QConfigError(
            f"granularity {granularity!r} with group_size={group_size!r}: "
            "give a positive group_size with 'group' and none otherwise"
        )


def row_views(weight: Tensor, granularity: str, group_size: int | None) -> list[Tensor]:
    """Views of a weight whose last dimension runs over the elements that share one scale.

    Per group there are up to two views, [out, full groups, group_size] and [out, 1, rest], so that a shorter
    last group needs no padding; their results are concatenated along the last dimension.
    """
    if granularity == "tensor":
        return [weight.reshape(1, -1)]
    rows = weight.reshape(weight.shape[0], -1)
    if granularity == "channel":
        return [rows]
    assert group_size is not None
    full = rows.shape[1] // group_size * group_size
    views = []
    if full:
        views.append(rows[:, :full].unflatten(1, (-1, group_size)))
    if full < rows.shape[1]:
        views.append(rows[:, full:].unsqueeze(1))
    return views


def sum_rows(values: Tensor, granularity: str, group_size: int | None) -> Tensor:
    """Sum over the elements that share one scale: shape [1], [out] or [out, n_groups]."""
    return _join([view.sum(-1) for view in row_views(values, granularity, group_size)])


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def weight_statistics(
    weight: Tensor, granularity: str, group_size: int | None = None, *, zero_centred: bool
) -> RangeStats:
    """Statistics of a weight, one value per scale.

    Args:
        weight: Shape [out, ...], any floating dtype.
        granularity: "tensor", "channel" or "group".
        group_size: Inputs per group along the flattened input dimensions, for "group".
        zero_centred: Take the spread about zero (the centre of the grid) instead of about the mean.

    Returns:
        float32 statistics of shape [1], [out] or [out, n_groups]; population (biased) deviations.
    """
    parts = []
    for rows in row_views(weight.detach().float(), granularity, group_size):
        low, high = rows.amin(-1), rows.amax(-1)
        if zero_centred:
            mean = torch.zeros_like(low)
            std = torch.linalg.vector_norm(rows, dim=-1) / math.sqrt(rows.shape[-1])
        else:
            var, mean = torch.var_mean(rows, dim=-1, correction=0)
            std = var.sqrt()
        parts.append((mean, std, low, high))
    return RangeStats(*(_join(column) for column in zip(*parts, strict=True)))


def hold(stats: RangeStats, offset: Tensor, reach: Tensor) -> RangeStats:
    """Statistics of a weight about another centre than its mean, with extremes that are at least so far from it.

    Args:
        stats: The weight's own, about its mean (or zero, with ``offset`` 0).
        offset: Centre minus mean, of the statistics' shape.
        reach: Least distance of the extremes from the centre, of the statistics' shape.
    """
    centre = stats.mean + offset
    return RangeStats(
        centre,
        torch.hypot(stats.std, offset),
        torch.minimum(stats.low, centre - reach),
        torch.maximum(stats.high, centre + reach),
    )


def tensor_statistics(x: Tensor) -> RangeStats:
    """Statistics of a whole activation tensor, float32 of shape [1] each.

    Args:
        x: Any shape, at least one element, any floating dtype.
    """
    x = x.detach()
    if on_host(x):
        numbers = scalar_statistics(x)
        return RangeStats(*(torch.tensor([value], dtype=torch.float32) for value in numbers))
    low, high = torch.aminmax(x)
    var, mean = torch.var_mean(x.float(), correction=0)
    return RangeStats(mean.reshape(1), var.sqrt().reshape(1), low.float().reshape(1), high.float().reshape(1))


def merge_statistics(stats: RangeStats, counts: Tensor) -> RangeStats:
    """Statistics of the union of several samples.

    Args:
        stats: One entry per sample, each field of shape [samples].
        counts: Elements in each sample, shape [samples]; an empty sample counts for nothing.

    Returns:
        Statistics of shape [1], the deviation about the joint mean; not finite where all samples are empty.
    """
    share = counts.double() / counts.double().sum()
    mean = (share * stats.mean.double()).sum(0, keepdim=True)
    var = (share * (stats.std.double() ** 2 + (stats.mean.double() - mean) ** 2)).sum(0, keepdim=True)
    low = stats.low.masked_fill(counts == 0, math.inf).amin(0, keepdim=True)
    high = stats.high.masked_fill(counts == 0, -math.inf).amax(0, keepdim=True)
    return RangeStats(mean.float(), var.sqrt().float(), low, high)


class _Alone:
    """How many blocks of :func:`on_this_rank_alone` the process is in."""

    depth = 0


@contextmanager
def on_this_rank_alone() -> Iterator[None]:
    """Calibrate on one data-parallel rank while the others wait: nothing in the block is a collective call."""
    _Alone.depth += 1
    try:
        yield
    finally:
        _Alone.depth -= 1


def world_size() -> int:
    """Number of data-parallel ranks that take part; 1 where torch.distributed is not in use."""
    if _Alone.depth:
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def merge_across_ranks(stats: RangeStats, count: int) -> RangeStats:
    """Statistics of all ranks' samples together, the same on every rank; a collective call.

    Args:
        stats: This rank's statistics, shape [1] each.
        count: Elements in this rank's sample.
    """
    local = torch.cat([*stats, torch.tensor([count], dtype=torch.float32, device=stats.mean.device)])
    gathered = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(gathered, local)
    columns = torch.stack(gathered, dim=1)
    return merge_statistics(RangeStats(*columns[:4]), columns[4])
