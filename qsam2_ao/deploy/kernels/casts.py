"""The dtypes inside and outside of a lowered part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...graph.leaves import only_level


def caller_dtype(x: Any) -> torch.dtype:
    """The dtype that a float module would return for input ``x``: autocast's, else that of ``x``."""
    tensor = only_level(x)
    if torch.is_autocast_enabled(tensor.device.type):
        return torch.get_autocast_dtype(tensor.device.type)
    return tensor.dtype


def readable(x: Tensor) -> Tensor:
    """``x`` in a dtype that the kernels read: float16, as of a float16 autocast, and float64 become float32."""
    return x.float() if x.dtype in (torch.float16, torch.float64) else x


def writable(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the kernels write for a result in ``dtype``."""
    return torch.float32 if dtype in (torch.float16, torch.float64) else dtype


def to_bfloat16(x: Any) -> Any:
    """Floating tensors, alone or in lists, in bfloat16; anything else as it is."""
    return to_dtype(x, torch.bfloat16)


def to_dtype(x: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in nested lists, tuples and dicts in another dtype; anything else as it is."""
    return _each(x, lambda tensor: tensor.to(dtype))


def given_in(x: Any, dtype: torch.dtype) -> Any:
    """:func:`to_dtype` of what a part gives that runs on the CPU's kernels, in memory that they keep for the next call.

    The largest of an encoder's features take 64 MiB in float32: memory that is new for each image takes longer to get
    than to fill.
    """
    return _each(x, lambda tensor: _widened(tensor) if dtype == torch.float32 else tensor.to(dtype))


def _widened(x: Tensor) -> Tensor:
    last = x.permute(0, 2, 3, 1) if x.dim() == 4 else None
    if last is None or x.dtype != torch.bfloat16 or not (last.is_contiguous() and x.numel()):
        return x.float()
    no_bias = last.new_zeros(last.shape[3], dtype=torch.float32)
    return torch.ops.qsam2.pixels(last, no_bias, 1, torch.float32).permute(0, 3, 1, 2)


def _each(x: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Tensor):
        return convert(x) if x.is_floating_point() else x
    if isinstance(x, dict):
        return {key: _each(value, convert) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(_each(value, convert) for value in x)
    return x
