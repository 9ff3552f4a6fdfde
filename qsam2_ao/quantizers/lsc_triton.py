"""Learnable statistical clipping on an NVIDIA GPU, in Triton: one kernel each for the forward and the backward pass.

They compute what ``lsc_function`` does with a dozen of torch's operators, each of which reads and writes the tensor.
"""

# Functions under triton.jit are of Triton's language: their arguments have no types of Python.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 2048
"""Of a program."""


class _Segments(NamedTuple):
    """How the elements that share one scale lie in memory.

    Attributes:
        number: How many there are, as many as scales.
        size: Elements of a segment; the last of a row may be shorter.
        groups: Segments of a row.
        row: Elements of a row.
    """

    number: int
    size: int
    groups: int
    row: int

    @property
    def tile(self) -> tuple[int, int]:
        """Segments of a program, and elements of each."""
        block = min(_ELEMENTS, triton.next_power_of_2(self.size))
        return _ELEMENTS // block, block

    @property
    def grid(self) -> tuple[int, int]:
        """Programs along a segment, and across segments."""
        across, along = self.tile
        return triton.cdiv(self.size, along), triton.cdiv(self.number, across)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    granularity: str = "tensor",
    group_size: int | None = None,
) -> Tensor:
    """Round to a grid, and back, in the dtype of ``x``.

    Args:
        x: Any shape, float32, float16 or bfloat16.
        scale: float32, one or one per segment.
        zero_point: As ``scale``.
        quant_min: Smallest code.
        quant_max: Largest code.
        granularity: "tensor", "channel" or "group".
        group_size: Inputs per group.
    """
    x = _dense(x, granularity)
    out = torch.empty_like(x)
    if x.numel():
        segments = _segments(x, granularity, group_size)
        across, along = segments.tile
        _forward[segments.grid](
            *(x, out, scale.contiguous(), zero_point.contiguous(), *segments, float(quant_min), float(quant_max)),
            ONE=scale.numel() == 1,
            ACROSS=across,
            ALONG=along,
        )
    return out


def gradients(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    ends: tuple[float, float],
    quant_min: int,
    quant_max: int,
    granularity: str = "tensor",
    group_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient to ``x``, and sum(g * d) per scale (see ``LSCFunction``), of shape [1], [out] or [out, n_groups].

    Args:
        grad: To the output.
        x: The input.
        scale: As it was rounded with.
        zero_point: As it was rounded with.
        ends: Of the open interval of codes that pass the gradient.
        quant_min: Smallest code.
        quant_max: Largest code.
        granularity: "tensor", "channel" or "group".
        group_size: Inputs per group.
    """
    x = _dense(x, granularity)
    if grad.stride() != x.stride():
        grad = torch.empty_like(x, dtype=grad.dtype).copy_(grad)
    to_x = torch.empty_like(x, dtype=grad.dtype)
    segments = _segments(x, granularity, group_size)
    parts = torch.zeros if not x.numel() else torch.empty
    sums = parts((segments.number, max(1, segments.grid[0])), dtype=torch.float32, device=x.device)
    if x.numel():
        across, along = segments.tile
        _backward[segments.grid](
            *(grad, x, to_x, sums, scale.contiguous(), zero_point.contiguous(), *segments, *ends),
            *(float(quant_min), float(quant_max)),
            ONE=scale.numel() == 1,
            ACROSS=across,
            ALONG=along,
        )
    total = sums.sum(1)
    return to_x, total.unflatten(0, (-1, segments.groups)) if granularity == "group" else total


def _dense(x: Tensor, granularity: str) -> Tensor:
    """``x`` in memory without gaps; in the order of its dimensions where that matters."""
    if granularity == "tensor" and torch.empty_like(x).stride() == x.stride():
        return x
    return x.contiguous()


def _segments(x: Tensor, granularity: str, group_size: int | None) -> _Segments:
    if granularity == "tensor":
        return _Segments(1, x.numel(), 1, x.numel())
    rows = x.shape[0]
    row = x.numel() // max(1, rows)
    size = group_size if granularity == "group" and group_size is not None else row
    groups = triton.cdiv(row, size) if granularity == "group" else 1
    return _Segments(rows * groups, min(size, row), groups, row)


@triton.jit
def _place(count, size, groups, row, ONE: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr):
    """Where a program's elements are, which of them exist, and where their scales are."""
    segment = tl.program_id(1) * ACROSS + tl.arange(0, ACROSS)
    i = tl.program_id(0) * ALONG + tl.arange(0, ALONG)
    first = segment % groups * size
    at = (segment // groups).to(tl.int64)[:, None] * row + first[:, None] + i[None, :]
    inside = (segment < count)[:, None] & (i < size)[None, :] & (first[:, None] + i[None, :] < row)
    return at, inside, segment, segment * 0 if ONE else tl.minimum(segment, count - 1)


@triton.jit
def _in_steps(x, inside, scale, zero_point, ACROSS: tl.constexpr, ALONG: tl.constexpr):
    """Elements in steps of their grid, unrounded, with the steps' sizes and the zero points."""
    s = tl.load(scale)[:, None] + tl.zeros((ACROSS, ALONG), tl.float32)
    z = tl.load(zero_point)[:, None]
    return tl.div_rn(tl.load(x, inside, other=0.0).to(tl.float32), s) + z, s, z


@triton.jit
def _rounded(steps, low, high):
    """Clamp and round half to even, as float32 rounds near 1.5 * 2^23."""
    steps = tl.maximum(steps, low, propagate_nan=tl.PropagateNan.ALL)
    return (tl.minimum(steps, high, propagate_nan=tl.PropagateNan.ALL) + 12582912.0) - 12582912.0


@triton.jit
def _forward(
    x,
    out,
    scale,
    zero_point,
    count,
    size,
    groups,
    row,
    low,
    high,
    ONE: tl.constexpr,
    ACROSS: tl.constexpr,
    ALONG: tl.constexpr,
):
    at, inside, _, which = _place(count, size, groups, row, ONE, ACROSS, ALONG)
    steps, s, z = _in_steps(x + at, inside, scale + which, zero_point + which, ACROSS, ALONG)
    y = (_rounded(steps, low, high) - z) * s
    tl.store(out + at, y.to(out.dtype.element_ty), inside)


@triton.jit
def _backward(
    grad,
    x,
    to_x,
    sums,
    scale,
    zero_point,
    count,
    size,
    groups,
    row,
    below,
    above,
    low,
    high,
    ONE: tl.constexpr,
    ACROSS: tl.constexpr,
    ALONG: tl.constexpr,
):
    at, inside, segment, which = _place(count, size, groups, row, ONE, ACROSS, ALONG)
    steps, _, z = _in_steps(x + at, inside, scale + which, zero_point + which, ACROSS, ALONG)
    g = tl.load(grad + at, inside, other=0.0).to(tl.float32)
    clipped = (steps <= below) | (steps >= above)
    tl.store(to_x + at, tl.where(clipped, 0.0, g).to(to_x.dtype.element_ty), inside)
    distance = _rounded(steps, low, high) - z - tl.where(clipped, 0.0, steps - z)
    part = tl.sum(tl.where(inside, distance * g, 0.0), 1)
    tl.store(sums + segment.to(tl.int64) * tl.num_programs(0) + tl.program_id(0), part, segment < count)
