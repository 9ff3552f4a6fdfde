"""The operators of ``torch.ops.qsam2``, which the CPU and CUDA kernels implement, and what they return.

Shapes and dtypes alone are enough for torch.compile and torch.export.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, _prims_common

_SHAPES: Any = _prims_common
# The name depends on the version of torch.
_is_dense: Callable[[Tensor], bool] = (
    getattr(_SHAPES, "is_non_overlapping_and_dense_or_false", None) or _SHAPES.is_non_overlapping_and_dense
)

_LIBRARY = torch.library.Library("qsam2", "DEF")
_LIBRARY.define("pack_weight(Tensor codes, int bits) -> (Tensor, Tensor)")
_LIBRARY.define(
    "linear(Tensor x, Tensor weight, int bits, Tensor table, Tensor alpha, Tensor beta, Tensor? residual, "
    "str activation, ScalarType out_dtype, float out_scale, float out_zero_point, int out_max) -> Tensor"
)
_LIBRARY.define("quantize(Tensor x, float scale, float zero_point, int max) -> Tensor")
_LIBRARY.define(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType out_dtype, float scale, "
    "float zero_point, int max) -> Tensor"
)
_LIBRARY.define("patches(Tensor x, int kh, int kw, int sh, int sw, int ph, int pw, int fill) -> Tensor")
_ROUNDED = "ScalarType out_dtype=bfloat16, float out_scale=1.0, float out_zero_point=0.0, int out_max=0"
"""What attention takes to give, for uint8, the codes that ``quantize`` would give of its bfloat16.

Layers give all of it, and never that last default: torch.export leaves out what ends in defaults, and AOTInductor reads
the default of a dtype as an integer.
"""
_LIBRARY.define(f"attention(Tensor q, Tensor k, Tensor v, float scale, bool int8_scores=False, {_ROUNDED}) -> Tensor")
_LIBRARY.define(f"window_attention(Tensor qkv, Tensor pad, int heads, int window, int stride, {_ROUNDED}) -> Tensor")
_LIBRARY.define("rotate(Tensor x, Tensor frequencies, SymInt rotated) -> Tensor")
_LIBRARY.define("pixels(Tensor x, Tensor bias, int stride, ScalarType out_dtype) -> Tensor")
_LIBRARY.define("gelu_planes(Tensor x, ScalarType out_dtype) -> Tensor")
_LIBRARY.define("trim_pool() -> int")


def _result_dtype(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Codes are uint8 for operators; GPUs keep them as int8, less 128."""
    return torch.int8 if dtype == torch.uint8 and x.device.type == "cuda" else dtype


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
    return x.new_empty((*x.shape[:-1], alpha.shape[0]), dtype=_result_dtype(x, out_dtype))


@torch.library.register_fake("qsam2::quantize")
def _quantize(x: Tensor, scale: float, zero_point: float, max: int) -> Tensor:
    # The kernel of CPUs goes through memory; what has gaps it makes contiguous first.
    like = x if x.device.type == "cuda" or _is_dense(x) else x.contiguous()
    return torch.empty_like(like, dtype=_result_dtype(x, torch.uint8))


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
    return x.new_empty(x.shape, dtype=_result_dtype(x, out_dtype))


@torch.library.register_fake("qsam2::attention")
def _attention(
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
    batch, heads, tokens, _ = q.shape
    return q.new_empty((batch, tokens, heads, v.shape[-1]), dtype=_result_dtype(q, out_dtype))


@torch.library.register_fake("qsam2::window_attention")
def _window_attention(
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
    batch, height, width, channels = qkv.shape
    shape = batch, height // stride, width // stride, channels // 3
    return qkv.new_empty(shape, dtype=_result_dtype(qkv, out_dtype))


@torch.library.register_fake("qsam2::rotate")
def _rotate(x: Tensor, frequencies: Tensor, rotated: int) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.bfloat16)


@torch.library.register_fake("qsam2::patches")
def _patches(x: Tensor, kh: int, kw: int, sh: int, sw: int, ph: int, pw: int, fill: int) -> Tensor:
    batch, height, width, channels = x.shape
    rows, columns = (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1
    return x.new_empty((batch, rows, columns, -(-channels * kh * kw // 4) * 4))


@torch.library.register_fake("qsam2::pixels")
def _pixels(x: Tensor, bias: Tensor, stride: int, out_dtype: torch.dtype) -> Tensor:
    batch, height, width, _ = x.shape
    return x.new_empty((batch, height * stride, width * stride, bias.shape[0]), dtype=out_dtype)


@torch.library.register_fake("qsam2::gelu_planes")
def _gelu_planes(x: Tensor, out_dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=out_dtype)
