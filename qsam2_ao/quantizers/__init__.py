"""What runs in quantization-aware training: affine arithmetic, grids and learnable clipping (LSC)."""

from .affine import broadcast_qparam, dequantize_affine, expand_groups, quantize_affine

__all__ = ["broadcast_qparam", "dequantize_affine", "expand_groups", "quantize_affine"]
