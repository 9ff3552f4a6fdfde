"""The kernels of an NVIDIA GPU, in Triton: int8 matrix multiplication from packed bits, attention inside of windows,
layer norm, rounding to codes.

A byte of packed weights holds codes that are ``_span`` inputs apart, so that each bit position of a tile of bytes is a
tile of codes. They are unpacked in registers: a weight is never in memory at 8 bits.
"""

# Functions under triton.jit are of Triton's language: their arguments have no types of Python.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import builtins
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

_SIGN = tl.constexpr(128)
"""Codes are multiplied as int8, less this."""
# Triton's interpreter would multiply the bits of bfloat16.
_FACTOR = tl.constexpr(tl.float32 if os.environ.get("TRITON_INTERPRET") == "1" else tl.bfloat16)


def pack_weight(codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Pack codes by rows.

    Args:
        codes: uint8 ``[N, K]``, K divisible by 4; of 8 bits, around 128.
        bits: 2, 3, 4 or 8. 3 bits are a plane of 2 and a plane of 1.

    Returns:
        uint8 ``[N, bytes]``, and the sum of each row's codes, int32 ``[N]``.
    """
    span, sums = _span(codes.shape[1], bits), codes.sum(1, dtype=torch.int32)
    if bits == 3:
        codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (8 * span)))
        return torch.cat([_pack(codes & 3, 2, span), _pack(codes >> 2, 1, span)], dim=1), sums
    return _pack(codes, bits, span), sums


def _span(k: int, bits: int) -> int:
    """Inputs between the codes of a byte: 64, or 32 (the least that tensor cores take) where that pads less."""
    run = 8 if bits == 3 else 8 // bits
    return 64 if -k % (64 * run) == -k % (32 * run) else 32


def _pack(codes: Tensor, bits: int, span: int) -> Tensor:
    run = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (run * span)))
    shifts = torch.arange(0, 8, bits, device=codes.device)[:, None]
    return (codes.unflatten(1, (-1, run, span)).int() << shifts).sum(2).to(torch.uint8).flatten(1)


def linear(
    x: Tensor,
    weight: Tensor,
    bits: int,
    table: Tensor,
    alpha: Tensor,
    beta: Tensor,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
    out_scale: float,
    out_zero_point: float,
    out_max: int,
) -> Tensor:
    """``act((x - 128) w^T alpha + beta) + residual`` of codes ``[..., K]``, as floats or rounded to codes.

    ``table`` must be evenly spaced, as the weights of a uniform grid are.
    """
    n, k = alpha.shape[0], x.shape[-1]
    rows = x.numel() // k
    out = x.new_empty((*x.shape[:-1], n), dtype=out_dtype)
    if not rows:
        return out
    kept = out if residual is None else residual.contiguous()  # not read if there is none
    block_m, block_n = (128, 128) if rows >= 2048 and n >= 128 else (64, 64) if rows > 32 else (16, 64)
    grid = (triton.cdiv(rows, block_m) * triton.cdiv(n, block_n),)
    _linear[grid](
        *(x, weight, table, alpha, beta, kept, out, rows, n, k, weight.shape[1]),
        *(out_scale, out_zero_point, float(out_max)),
        BITS=bits,
        ACTIVATION=activation,
        RESIDUAL=residual is not None,
        CODES=out_dtype == torch.uint8,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        SPAN=_span(k, bits),
        num_warps=8 if block_m == 128 else 4,
        num_stages=3 if bits >= 4 else 2,  # at most 99 KB of shared memory
    )
    return out


@triton.jit
def _linear(
    x,
    weight,
    table,
    alpha,
    beta,
    residual,
    out,
    rows,
    n,
    k,
    stride,
    out_scale,
    out_zero_point,
    out_max,
    BITS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CODES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPAN: tl.constexpr,
):
    # Programs that run together share rows of x and of the weight: groups of 8 blocks down, then across.
    blocks_m, blocks_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(n, BLOCK_N)
    program = tl.program_id(0)
    group = program // (8 * blocks_n)
    height = tl.minimum(blocks_m - group * 8, 8)
    block_m = group * 8 + (program % (8 * blocks_n)) % height
    block_n = (program % (8 * blocks_n)) // height
    m = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    c = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    low = tl.load(table)
    step = tl.load(table + 1) - low
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    RUN: tl.constexpr = 8 if BITS == 3 else 8 // BITS
    i = tl.arange(0, SPAN)
    x += m.to(tl.int64)[:, None] * k + i[None, :]
    weight += c[None, :].to(tl.int64) * stride + i[:, None]
    mask = c[None, :] < n  # rows are padded: bytes past k are there, and the codes of x are not
    if BITS == 3:
        weight_high = weight + tl.cdiv(k, RUN * SPAN) * 2 * SPAN
    for start in range(0, k, RUN * SPAN):
        if BITS == 3:
            high = tl.load(weight_high + start // 8, mask, other=0)
        packed = tl.load(weight + start // (8 // (2 if BITS == 3 else BITS)), mask, other=0)
        for run in tl.static_range(RUN):
            first = start + run * SPAN
            a = tl.load(x + first, (m[:, None] < rows) & (first + i[None, :] < k), other=_SIGN)
            a = (a ^ _SIGN).to(tl.int8, bitcast=True)  # 0 past k
            if BITS == 8:
                w = (packed ^ _SIGN).to(tl.int8, bitcast=True)
            else:
                if BITS == 3:
                    if run == 4:
                        packed = tl.load(weight + start // 4 + SPAN, mask, other=0)
                    w = ((packed >> (run % 4 * 2)) & 3) | (((high >> run) & 1) << 2)
                else:
                    w = (packed >> (run * BITS)) & ((1 << BITS) - 1)
                w = (w.to(tl.int8) * step + low).to(tl.int8)
            sums = tl.dot(a, w, sums, out_dtype=tl.int32)
    inside = (m[:, None] < rows) & (c[None, :] < n)
    at = m.to(tl.int64)[:, None] * n + c[None, :]
    y = sums.to(tl.float32) * tl.load(alpha + c, c < n, other=0.0)[None, :]
    y += tl.load(beta + c, c < n, other=0.0)[None, :]
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "relu":
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if RESIDUAL:
        y += tl.load(residual + at, inside, other=0.0).to(tl.float32)
    if CODES:
        y = _codes(y, out_scale, out_zero_point, out_max)
    tl.store(out + at, y.to(out.dtype.element_ty), inside)


@triton.jit
def _codes(x, scale, zero_point, high):
    x = tl.div_rn(x, tl.full(x.shape, scale, tl.float32)) + zero_point
    x = tl.minimum(tl.maximum(x, 0.0), high)
    return (x + 8388608.0) - 8388608.0  # rounds half to even: from 2^23 on, floats are whole numbers


def quantize(x: Tensor, scale: float, zero_point: float, max: int) -> Tensor:
    """The codes of ``x``, in the order of dimensions that a dense tensor has."""
    out = torch.empty_like(x, dtype=torch.uint8)
    dense = x if out.stride() == x.stride() else torch.empty_like(out, dtype=x.dtype).copy_(x)
    if x.numel():
        grid = (triton.cdiv(x.numel(), 2048),)
        _quantize[grid](dense, out, x.numel(), scale, zero_point, float(max), BLOCK=2048)
    return out


@triton.jit
def _quantize(x, out, count, scale, zero_point, high, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, at < count, other=0.0).to(tl.float32)
    tl.store(out + at, _codes(value, scale, zero_point, high).to(tl.uint8), at < count)


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    scale: float,
    zero_point: float,
    max: int,
) -> Tensor:
    """Layer normalization over the last dimension, to floats or codes."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=out_dtype)
    if x.numel():
        n = x.shape[-1]
        rows, block = x.numel() // n, triton.next_power_of_2(n)
        height = builtins.max(1, 2048 // block)
        _layer_norm[(triton.cdiv(rows, height),)](
            *(x, weight, bias, out, rows, n, eps, scale, zero_point, float(max)),
            CODES=out_dtype == torch.uint8,
            ROWS=height,
            BLOCK=block,
        )
    return out


@triton.jit
def _layer_norm(
    x,
    weight,
    bias,
    out,
    rows,
    n,
    eps,
    scale,
    zero_point,
    high,
    CODES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, BLOCK)
    mask = (row[:, None] < rows) & (i[None, :] < n)
    at = row[:, None] * n + i[None, :]
    value = tl.load(x + at, mask, other=0.0).to(tl.float32)
    centred = tl.where(mask, value - tl.sum(value, 1)[:, None] / n, 0.0)
    y = centred * (1.0 / tl.sqrt(tl.sum(centred * centred, 1) / n + eps))[:, None]
    y = y * tl.load(weight + i, i < n, other=0.0)[None, :] + tl.load(bias + i, i < n, other=0.0)[None, :]
    if CODES:
        y = _codes(y, scale, zero_point, high)
    tl.store(out + at, y.to(out.dtype.element_ty), mask)


def window_attention(qkv: Tensor, pad: Tensor, heads: int, window: int, stride: int) -> Tensor:
    """``[B, H, W, 3 * heads * c]`` -> ``[B, H / stride, W / stride, heads * c]``; tokens of padding are ``pad``."""
    batch, height, width, channels = qkv.shape
    c = channels // (3 * heads)
    out = qkv.new_empty((batch, height // stride, width // stride, heads * c))
    down, across = triton.cdiv(height, window), triton.cdiv(width, window)
    queries = (window // stride) ** 2
    block = builtins.min(64, builtins.max(16, triton.next_power_of_2(queries)))
    _window_attention[(batch * down * across, heads, triton.cdiv(queries, block))](
        *(qkv, pad, out, height, width, across, down * across, c**-0.5),
        HEADS=heads,
        C=c,
        WINDOW=window,
        STRIDE=stride,
        QUERIES=block,
        KEYS=builtins.min(64, builtins.max(16, triton.next_power_of_2(window * window))),
        BLOCK_C=builtins.max(16, triton.next_power_of_2(c)),
        num_warps=4,
    )
    return out


@triton.jit
def _window_attention(
    qkv,
    pad,
    out,
    height,
    width,
    across,
    windows,
    scale,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    WINDOW: tl.constexpr,
    STRIDE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    SIDE: tl.constexpr = WINDOW // STRIDE
    head = tl.program_id(1)
    image = tl.program_id(0) // windows
    top = tl.program_id(0) % windows // across * WINDOW
    left = tl.program_id(0) % windows % across * WINDOW
    i = tl.arange(0, BLOCK_C)
    query = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    image_tokens = image.to(tl.int64) * height * width
    # Queries are pooled over squares, those of padding included, as the float model pools them.
    q = tl.full((QUERIES, BLOCK_C), float("-inf"), tl.float32)
    for square in tl.static_range(STRIDE * STRIDE):
        y = top + query // SIDE * STRIDE + square // STRIDE
        x = left + query % SIDE * STRIDE + square % STRIDE
        token = _tokens(qkv, pad, image_tokens, y, x, height, width, head, i, 0, HEADS, C).to(tl.float32)
        q = tl.maximum(q, token, propagate_nan=tl.PropagateNan.ALL)
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, BLOCK_C), tl.float32)
    for start in range(0, WINDOW * WINDOW, KEYS):
        key = start + tl.arange(0, KEYS)
        row, column = top + key // WINDOW, left + key % WINDOW
        k = _tokens(qkv, pad, image_tokens, row, column, height, width, head, i, 1, HEADS, C).to(_FACTOR)
        scores = tl.dot(q.to(tl.bfloat16).to(_FACTOR), tl.trans(k)) * scale
        scores = tl.where(key[None, :] < WINDOW * WINDOW, scores, float("-inf"))
        before, highest = highest, tl.maximum(highest, tl.max(scores, 1))
        kept = tl.exp(before - highest)
        weights = tl.exp(scores - highest[:, None])
        total = total * kept + tl.sum(weights, 1)
        v = _tokens(qkv, pad, image_tokens, row, column, height, width, head, i, 2, HEADS, C).to(_FACTOR)
        mixed = tl.dot(weights.to(tl.bfloat16).to(_FACTOR), v, mixed * kept[:, None])
    mixed /= total[:, None]
    y, x = top // STRIDE + query // SIDE, left // STRIDE + query % SIDE
    rows, columns = height // STRIDE, width // STRIDE
    inside = (query < SIDE * SIDE) & (y < rows) & (x < columns)
    at = ((image.to(tl.int64) * rows + y) * columns + x) * (HEADS * C) + head * C
    tl.store(out + at[:, None] + i[None, :], mixed.to(tl.bfloat16), inside[:, None] & (i[None, :] < C))


@triton.jit
def _tokens(qkv, pad, image_tokens, y, x, height, width, head, i, which, HEADS: tl.constexpr, C: tl.constexpr):
    """Queries, keys or values (0, 1, 2) of a head at rows ``y`` and columns ``x``: ``[tokens, channels]``."""
    column = (which * HEADS + head) * C + i
    inside = (y < height) & (x < width)
    at = (image_tokens + y * width + x) * (3 * HEADS * C)
    token = tl.load(qkv + at[:, None] + column[None, :], inside[:, None] & (i[None, :] < C), other=0.0)
    padding = tl.load(pad + column, i < C, other=0.0)
    return tl.where(inside[:, None], token, padding[None, :])
