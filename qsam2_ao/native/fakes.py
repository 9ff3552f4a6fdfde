"""What the kernels return, without computing it: shapes and dtypes for torch.compile and torch.export."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("qsam2::linear")
def _linear(
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
    return x.new_empty((*x.shape[:-1], alpha.shape[0]), dtype=out_dtype)


@torch.library.register_fake("qsam2::quantize")
def _quantize(x: Tensor, scale: float, zero_point: float, max: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.uint8)


@torch.library.register_fake("qsam2::layer_norm")
def _layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    scale: float,
    zero_point: float,
    max: int,
) -> Tensor:
    return x.new_empty(x.shape, dtype=out_dtype)


@torch.library.register_fake("qsam2::attention")
def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    batch, heads, tokens, channels = q.shape
    return q.new_empty((batch, tokens, heads, channels))


@torch.library.register_fake("qsam2::window_attention")
def _window_attention(qkv: Tensor, pad: Tensor, heads: int, window: int, stride: int) -> Tensor:
    batch, height, width, channels = qkv.shape
    return qkv.new_empty((batch, height // stride, width // stride, channels // 3))


@torch.library.register_fake("qsam2::patches")
def _patches(x: Tensor, kh: int, kw: int, sh: int, sw: int, ph: int, pw: int, fill: int) -> Tensor:
    batch, height, width, channels = x.shape
    rows, columns = (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1
    return x.new_empty((batch, rows, columns, -(-channels * kh * kw // 4) * 4))
