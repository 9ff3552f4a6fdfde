"""What runs in quantization-aware training: affine arithmetic, grids and learnable clipping (LSC)."""

from .affine import (
    broadcast_qparam,
    dequantize_affine,
    expand_groups,
    fake_quantize_affine,
    quantize_affine,
)
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
