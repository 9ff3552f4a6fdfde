"""Attention that torch's fast kernels do not compute, on an NVIDIA GPU, in Triton.

Memory attention has keys of 256 channels and memories of 64. It has one head and, in a batch of one, too few blocks of
queries for a large GPU: keys are split, and what the parts give is weighed.

Scores may also be products of int8 codes (SageAttention, Zhang et al. 2024): every query and every key is rounded to a
grid of its own, keys less their mean over all keys, which takes the same from all scores of a query.
"""

# Functions under triton.jit are of Triton's language: their arguments have no types of Python.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_linear import BLOCKS, has_warpgroups, rounded

# Triton's interpreter would multiply the bits of bfloat16.
_FACTOR = tl.constexpr(tl.float32 if os.environ.get("TRITON_INTERPRET") == "1" else tl.bfloat16)
_LOG2_E = 1.4426950408889634
_KEYS_OF_A_PART = 1024
"""The fewest that are worth a part of their own."""


def attention_in_parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    int8_scores: bool = False,
    out_dtype: torch.dtype = torch.bfloat16,
    out_scale: float = 1.0,
    out_zero_point: float = 0.0,
    out_max: int = 0,
) -> Tensor:
    """``[B, heads, N, c]``, ``[B, heads, M, c]`` and ``[B, heads, M, d]``, bfloat16 -> ``[B, N, heads, d]``.

    ``out_dtype`` uint8 stands for the codes that ``quantize`` gives of bfloat16.
    """
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    batch, heads, queries, channels = q.shape
    keys, width = k.shape[2], v.shape[3]
    block_d = max(16, triton.next_power_of_2(width))
    rows, columns, warps = _blocks(has_warpgroups(q.device), int8_scores, block_d)
    blocks = triton.cdiv(queries, rows) * batch * heads
    parts = max(1, min(2 * BLOCKS // blocks, keys // _KEYS_OF_A_PART))
    length = triton.cdiv(triton.cdiv(keys, parts), columns) * columns
    parts = triton.cdiv(keys, length)
    codes, grid = out_dtype == torch.uint8, (out_scale, out_zero_point, float(out_max))
    out = q.new_empty((batch, queries, heads, width), dtype=torch.int8 if codes else out_dtype)
    sums = out if parts == 1 else q.new_empty((parts, *out.shape), dtype=torch.float32)
    logs = q.new_empty((parts, batch, queries, heads), dtype=torch.float32)
    scale *= _LOG2_E
    q_scales = k_scales = logs  # not read
    if int8_scores:
        q, q_scales = _coded(q, None, scale)
        k, k_scales = _coded(k, k.mean(2, dtype=torch.float32), 1.0)
    _attention_of_a_part[(triton.cdiv(queries, rows), batch * heads, parts)](
        *(q, k, v, q_scales, k_scales, sums, logs, queries, keys, length, scale, heads),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grid),
        SPLIT=parts > 1,
        CODES=codes,
        INT8=int8_scores,
        C=channels,
        D=width,
        QUERIES=rows,
        KEYS=columns,
        BLOCK_C=max(32 if int8_scores else 16, triton.next_power_of_2(channels)),
        BLOCK_D=block_d,
        num_warps=warps,
        num_stages=2,
    )
    if parts > 1:
        block = triton.next_power_of_2(width)
        height = max(1, 2048 // block)
        _merge[(triton.cdiv(out.numel() // width, height),)](
            *(sums, logs, out, out.numel() // width, parts, *grid), CODES=codes, D=width, ROWS=height, BLOCK=block
        )
    return out


def _blocks(warpgroups: bool, int8_scores: bool, width: int) -> tuple[int, int, int]:
    """Queries and keys at a time, and warps: nothing spills, in at most 99 KB of shared memory but on Hopper."""
    if warpgroups:
        return 128, 64, 8
    return (32 if width > 128 else 64, 64, 4) if int8_scores else (64, 32, 4)


def _coded(x: Tensor, mean: Tensor | None, factor: float) -> tuple[Tensor, Tensor]:
    """``[B, heads, N, c]`` less a mean ``[B, heads, c]`` -> int8 codes, and steps times a factor ``[B, heads, N]``."""
    batch, heads, tokens, channels = x.shape
    codes = x.new_empty(x.shape, dtype=torch.int8)
    scales = x.new_empty((batch, heads, tokens), dtype=torch.float32)
    block = triton.next_power_of_2(channels)
    rows = max(1, 4096 // block)
    _code_rows[(triton.cdiv(tokens, rows), batch * heads)](
        *(x, scales if mean is None else mean, codes, scales, tokens, heads, factor, *x.stride()[:3]),
        LESS_MEAN=mean is not None,
        C=channels,
        ROWS=rows,
        BLOCK=block,
    )
    return codes, scales


@triton.jit
def _code_rows(
    x,
    mean,
    codes,
    scales,
    tokens,
    heads,
    factor,
    x_batch,
    x_head,
    x_token,
    LESS_MEAN: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Round each token to a grid of its own, whose step is NaN where a value is not finite."""
    head = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, BLOCK)
    inside = (token < tokens)[:, None] & (i < C)[None, :]
    x += head // heads * x_batch + head % heads * x_head
    value = tl.load(x + token.to(tl.int64)[:, None] * x_token + i[None, :], inside, other=0.0).to(tl.float32)
    if LESS_MEAN:
        value = tl.where(inside, value - tl.load(mean + head * C + i, i < C, other=0.0)[None, :], 0.0)
    step = tl.max(tl.abs(value), 1) / 127 + tl.sum(value * 0.0, 1)
    inverse = 1.0 / tl.maximum(step, 1e-30)
    # The lowest byte of 1.5 * 2^23 and an integer is that integer.
    rounded_values = (value * inverse[:, None] + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    row = head * tokens + token
    tl.store(codes + row[:, None] * C + i[None, :], rounded_values, inside)
    tl.store(scales + row, step * factor, token < tokens)


@triton.jit
def _attention_of_a_part(
    q,
    k,
    v,
    q_scales,
    k_scales,
    out,
    logs,
    queries,
    keys,
    length,
    scale,
    heads,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    out_scale,
    out_zero_point,
    out_max,
    SPLIT: tl.constexpr,
    CODES: tl.constexpr,
    INT8: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    batch, head, part = tl.program_id(1) // heads, tl.program_id(1) % heads, tl.program_id(2)
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    row = tl.minimum(query, queries - 1)
    i, j = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    q += batch.to(tl.int64) * q_batch + head * q_head
    tile = _tile(q + row.to(tl.int64)[:, None] * q_token + i[None, :], i, C, BLOCK_C)
    if INT8:
        scale = tl.load(q_scales + tl.program_id(1).to(tl.int64) * queries + row)[:, None]
        k_scales += tl.program_id(1).to(tl.int64) * keys
    else:
        tile = tile.to(_FACTOR)
    k += batch.to(tl.int64) * k_batch + head * k_head + i[None, :]
    v += batch.to(tl.int64) * v_batch + head * v_head + j[None, :]
    # Finite, so that keys that weigh nothing (scores of -infinity) give zeros as long as there may be others.
    highest = tl.full((QUERIES,), -3.4028234e38, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, BLOCK_D), tl.float32)
    first, last = part * length, tl.minimum((part + 1) * length, keys)
    whole = first + (last - first) // KEYS * KEYS
    for start in range(first, whole, KEYS):
        mixed, highest, total = _attend(
            *(tile, k, v, k_scales, start, keys, k_token, v_token, scale, mixed, highest, total, i, j),
            *(INT8, C, D, KEYS, BLOCK_C, BLOCK_D, False),
        )
    if whole < last:
        mixed, highest, total = _attend(
            *(tile, k, v, k_scales, whole, keys, k_token, v_token, scale, mixed, highest, total, i, j),
            *(INT8, C, D, KEYS, BLOCK_C, BLOCK_D, True),
        )
    at = ((part * (tl.num_programs(1) // heads) + batch).to(tl.int64) * queries + query) * heads + head
    inside = query < queries
    result = mixed / total[:, None]
    if SPLIT:
        tl.store(logs + at, highest + tl.log2(total), inside)
    else:
        result = rounded(result, out_scale, out_zero_point, out_max, CODES)
    tl.store(out + at[:, None] * D + j[None, :], result, inside[:, None] & (j[None, :] < D))


@triton.jit
def _attend(
    tile,
    k,
    v,
    k_scales,
    start,
    keys,
    k_token,
    v_token,
    scale,
    mixed,
    highest,
    total,
    i,
    j,
    INT8: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL: tl.constexpr,
):
    """Take a block of keys in."""
    key = start + tl.arange(0, KEYS)
    row = (tl.minimum(key, keys - 1) if TAIL else key).to(tl.int64)
    tokens = tl.trans(_tile(k + row[:, None] * k_token, i, C, BLOCK_C))
    if INT8:
        products = tl.dot(tile, tokens, out_dtype=tl.int32).to(tl.float32)
        scores = products * scale * tl.load(k_scales + row)[None, :]
    else:
        scores = tl.dot(tile, tokens.to(_FACTOR)) * scale
    if TAIL:
        scores = tl.where(key[None, :] < keys, scores, float("-inf"))
    before, highest = highest, tl.maximum(highest, tl.max(scores, 1))
    kept = tl.exp2(before - highest)
    weights = tl.exp2(scores - highest[:, None])
    values = _tile(v + row[:, None] * v_token, j, D, BLOCK_D).to(_FACTOR)
    mixed = tl.dot(weights.to(tl.bfloat16).to(_FACTOR), values, mixed * kept[:, None])
    return mixed, highest, total * kept + tl.sum(weights, 1)


@triton.jit
def _merge(
    sums,
    logs,
    out,
    rows,
    parts,
    out_scale,
    out_zero_point,
    out_max,
    CODES: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The mean of what the parts give, each by the sum of its softmax, of which ``logs`` are to the base 2."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, BLOCK)
    at = row[:, None] * D + j[None, :]
    inside = (row[:, None] < rows) & (j[None, :] < D)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    for part in range(parts):
        highest = tl.maximum(highest, tl.load(logs + part * rows + row, row < rows, other=0.0))
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, BLOCK), tl.float32)
    for part in range(parts):
        weight = tl.exp2(tl.load(logs + part * rows + row, row < rows, other=0.0) - highest)
        total += weight
        values = tl.load(sums + tl.cast(part, tl.int64) * rows * D + at, inside, other=0.0)
        mixed += tl.where(weight[:, None] == 0, 0.0, weight[:, None] * values)  # NaN where no key weighs anything
    tl.store(out + at, rounded(mixed / total[:, None], out_scale, out_zero_point, out_max, CODES), inside)


@triton.jit
def _tile(at, i, C: tl.constexpr, BLOCK: tl.constexpr):
    """Load rows of ``C`` channels; there is no mask where they fill the block."""
    return tl.load(at) if C == BLOCK else tl.load(at, i[None, :] < C, other=0)
