"""The dtypes inside and outside of a lowered part."""

from __future__ import annotations

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
    if isinstance(x, Tensor):
        return x.to(dtype) if x.is_floating_point() else x
    if isinstance(x, dict):
        return {key: to_dtype(value, dtype) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(to_dtype(value, dtype) for value in x)
    return x
