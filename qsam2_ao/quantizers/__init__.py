"""What runs in quantization-aware training: affine arithmetic, grids and learnable clipping (LSC).

A deployed model needs the arithmetic alone. The quantizers, which import torchao, are imported when they are asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .affine import (
    broadcast_qparam,
    dequantize_affine,
    expand_groups,
    fake_quantize_affine,
    quantize_affine,
)

if TYPE_CHECKING:
    from .lsc import LSCFakeQuantize
    from .ranges import RangedFakeQuantize, calibrating, range_parameters
    from .snapping import snap_weights

__all__ = [
    "LSCFakeQuantize",
    "RangedFakeQuantize",
    "broadcast_qparam",
    "calibrating",
    "dequantize_affine",
    "expand_groups",
    "fake_quantize_affine",
    "quantize_affine",
    "range_parameters",
    "snap_weights",
]

_HOMES = {
    "LSCFakeQuantize": "lsc",
    "RangedFakeQuantize": "ranges",
    "calibrating": "ranges",
    "range_parameters": "ranges",
    "snap_weights": "snapping",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    return value
