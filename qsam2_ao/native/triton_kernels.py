"""The kernels of an NVIDIA GPU beside matrix multiplication, in Triton: attention inside of windows, layer norm,
rounding to codes.
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

from .triton_linear import codes_of, divided_codes, rounded

# Triton's interpreter would multiply the bits of bfloat16.
_FACTOR = tl.constexpr(tl.float32 if os.environ.get("TRITON_INTERPRET") == "1" else tl.bfloat16)


def quantize(x: Tensor, scale: float, zero_point: float, max: int) -> Tensor:
    """The codes of ``x`` less 128, int8, in the order of dimensions that a dense tensor has."""
    out = torch.empty_like(x, dtype=torch.int8)
    dense = x if out.stride() == x.stride() else torch.empty_like(out, dtype=x.dtype).copy_(x)
    if x.numel():
        grid = (triton.cdiv(x.numel(), 2048),)
        _quantize[grid](dense, out, x.numel(), scale, zero_point, float(max), BLOCK=2048)
    return out


@triton.jit
def _quantize(x, out, count, scale, zero_point, high, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, at < count, other=0.0).to(tl.float32)
    tl.store(out + at, divided_codes(value, scale, zero_point, high), at < count)


def patches(x: Tensor, kh: int, kw: int, sh: int, sw: int, ph: int, pw: int, fill: int) -> Tensor:
    """Codes ``[B, H, W, C]`` -> ``[B, H', W', C * kh * kw, padded to a multiple of 4]``, kernel positions first."""
    batch, height, width, channels = x.shape
    down, across = (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1
    length = triton.cdiv(channels * kh * kw, 4) * 4
    out = x.new_empty((batch, down, across, length))
    if out.numel():
        block = triton.next_power_of_2(length)
        rows = builtins.max(1, 4096 // block)
        _patches[(triton.cdiv(batch * down * across, rows),)](
            *(x, out, batch * down * across, down, across, height, width, *x.stride(), sh, sw, ph, pw),
            fill - 128,  # as codes are in memory
            CHANNELS=channels,
            KH=kh,
            KW=kw,
            LENGTH=length,
            ROWS=rows,
            BLOCK=block,
        )
    return out


@triton.jit
def _patches(
    x,
    out,
    count,
    down,
    across,
    height,
    width,
    x_image,
    x_row,
    x_column,
    x_channel,
    sh,
    sw,
    ph,
    pw,
    fill,
    CHANNELS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    LENGTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, BLOCK)
    image, place = token // (down * across), token % (down * across)
    row = (place // across * sh - ph)[:, None] + (i // (KW * CHANNELS))[None, :]
    column = (place % across * sw - pw)[:, None] + (i // CHANNELS % KW)[None, :]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside = inside & (token < count)[:, None] & (i < CHANNELS * KH * KW)[None, :]
    at = image.to(tl.int64)[:, None] * x_image + row * x_row + column * x_column + (i % CHANNELS)[None, :] * x_channel
    codes = tl.where(inside, tl.load(x + at, inside, other=0).to(tl.int32), fill).to(tl.int8)
    kept = (token < count)[:, None] & (i < LENGTH)[None, :]
    tl.store(out + token.to(tl.int64)[:, None] * LENGTH + i[None, :], codes, kept)


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
    """Layer normalization over the last dimension, to floats, or to codes for ``out_dtype`` uint8."""
    x = x.contiguous()
    codes = out_dtype == torch.uint8
    out = torch.empty_like(x, dtype=torch.int8 if codes else out_dtype)
    if x.numel():
        n = x.shape[-1]
        rows, block = x.numel() // n, triton.next_power_of_2(n)
        height = builtins.max(1, 2048 // block)
        _layer_norm[(triton.cdiv(rows, height),)](
            *(x, weight, bias, out, rows, n, eps, 1 / scale, zero_point, float(max)),
            CODES=codes,
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
    steps,
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
        tl.store(out + at, codes_of(y * steps + zero_point, high), mask)
    else:
        tl.store(out + at, y.to(out.dtype.element_ty), mask)


def window_attention(
    qkv: Tensor,
    pad: Tensor,
    heads: int,
    window: int,
    stride: int,
    out_dtype: torch.dtype = torch.bfloat16,
    out_scale: float = 1.0,
    out_zero_point: float = 0.0,
    out_max: int = 0,
) -> Tensor:
    """``[B, H, W, 3 * heads * c]`` -> ``[B, H / stride, W / stride, heads * c]``; tokens of padding are ``pad``.

    ``out_dtype`` uint8 stands for the codes that :func:`quantize` gives of bfloat16.
    """
    batch, height, width, channels = qkv.shape
    c = channels // (3 * heads)
    codes = out_dtype == torch.uint8
    shape = batch, height // stride, width // stride, heads * c
    out = qkv.new_empty(shape, dtype=torch.int8 if codes else out_dtype)
    down, across = triton.cdiv(height, window), triton.cdiv(width, window)
    queries = (window // stride) ** 2
    block = builtins.min(64, builtins.max(16, triton.next_power_of_2(queries)))
    _window_attention[(batch * down * across, heads, triton.cdiv(queries, block))](
        *(qkv, pad, out, height, width, across, down * across, c**-0.5, out_scale, out_zero_point, float(out_max)),
        CODES=codes,
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
    out_scale,
    out_zero_point,
    out_max,
    CODES: tl.constexpr,
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
    result = rounded(mixed, out_scale, out_zero_point, out_max, CODES)
    tl.store(out + at[:, None] + i[None, :], result, inside[:, None] & (i[None, :] < C))


@triton.jit
def _tokens(qkv, pad, image_tokens, y, x, height, width, head, i, which, HEADS: tl.constexpr, C: tl.constexpr):
    """Queries, keys or values (0, 1, 2) of a head at rows ``y`` and columns ``x``: ``[tokens, channels]``."""
    column = (which * HEADS + head) * C + i
    inside = (y < height) & (x < width)
    at = (image_tokens + y * width + x) * (3 * HEADS * C)
    token = tl.load(qkv + at[:, None] + column[None, :], inside[:, None] & (i[None, :] < C), other=0.0)
    padding = tl.load(pad + column, i < C, other=0.0)
    return tl.where(inside[:, None], token, padding[None, :])
