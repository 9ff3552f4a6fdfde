"""The kernels of an NVIDIA GPU, in Triton: int8 matrix multiplication from packed bits, rounding to codes, layer norm.

Rows of packed weights hold their codes in order, ``8 / bits`` to a byte, lowest bits first. 3 bits are a plane of 2 and
a plane of 1. They are unpacked in registers, so that a weight is never in memory at 8 bits.
"""

# Functions under triton.jit are of Triton's language: their arguments have no types of Python.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_SIGN = tl.constexpr(128)
"""Codes are multiplied as int8, less this."""


def pack_weight(codes: Tensor, bits: int) -> Tensor:
    """Pack codes by rows.

    Args:
        codes: uint8 ``[N, K]``, K divisible by 4; of 8 bits, around 128.
        bits: 2, 3, 4 or 8.

    Returns:
        uint8 ``[N, bytes]``.
    """
    if bits == 3:
        return torch.cat([pack_weight(codes & 3, 2), _pack(codes >> 2, 1)], dim=1)
    return _pack(codes, bits)


def _pack(codes: Tensor, bits: int) -> Tensor:
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (8 // bits)))
    shifts = torch.arange(0, 8, bits, device=codes.device)
    return (codes.unflatten(1, (-1, 8 // bits)).int() << shifts).sum(-1).to(torch.uint8)


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
        BLOCK_K=128 if k >= 512 else 64,
        num_warps=8 if block_m == 128 else 4,
        num_stages=3,
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
    BLOCK_K: tl.constexpr,
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
    for start in range(0, k, BLOCK_K):
        i = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + m.to(tl.int64)[:, None] * k + i[None, :], (m[:, None] < rows) & (i[None, :] < k), other=0)
        a = (a ^ _SIGN).to(tl.int8, bitcast=True)
        row = weight + c[None, :].to(tl.int64) * stride
        mask = (i[:, None] < k) & (c[None, :] < n)
        if BITS == 8:
            w = (tl.load(row + i[:, None], mask, other=128) ^ _SIGN).to(tl.int8, bitcast=True)
        else:
            if BITS == 3:
                w = (tl.load(row + i[:, None] // 4, mask, other=0) >> (i[:, None] % 4 * 2).to(tl.uint8)) & 3
                high = row + k // 4
                w |= ((tl.load(high + i[:, None] // 8, mask, other=0) >> (i[:, None] % 8).to(tl.uint8)) & 1) << 2
            else:
                PER: tl.constexpr = 8 // BITS
                w = tl.load(row + i[:, None] // PER, mask, other=0)
                w = (w >> (i[:, None] % PER * BITS).to(tl.uint8)) & ((1 << BITS) - 1)
            w = tl.where(mask, w.to(tl.int8) * step + low, 0).to(tl.int8)
        sums = tl.dot(a, w, sums, out_dtype=tl.int32)
    inside = (m[:, None] < rows) & (c[None, :] < n)
    at = m.to(tl.int64)[:, None] * n + c[None, :]
    y = sums.to(tl.float32) * tl.load(alpha + c, c < n, other=0.0)[None, :]
    y += tl.load(beta + c, c < n, other=0.0)[None, :]
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "relu":
        y = tl.maximum(y, 0.0)
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
        rows = x.numel() // n
        _layer_norm[(rows,)](
            *(x, weight, bias, out, n, eps, scale, zero_point, float(max)),
            CODES=out_dtype == torch.uint8,
            BLOCK=triton.next_power_of_2(n),
            num_warps=1 if n <= 256 else 4,
        )
    return out


@triton.jit
def _layer_norm(x, weight, bias, out, n, eps, scale, zero_point, high, CODES: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    value = tl.load(x + row * n + i, i < n, other=0.0).to(tl.float32)
    centred = tl.where(i < n, value - tl.sum(value, 0) / n, 0.0)
    y = centred * (1.0 / tl.sqrt(tl.sum(centred * centred, 0) / n + eps))
    y = y * tl.load(weight + i, i < n, other=0.0) + tl.load(bias + i, i < n, other=0.0)
    if CODES:
        y = _codes(y, scale, zero_point, high)
    tl.store(out + row * n + i, y.to(out.dtype.element_ty), i < n)
