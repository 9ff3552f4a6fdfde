"""The CPU kernels: int8 matrix multiplication from packed bits, and bfloat16 attention, in C++ with AVX-512."""

from .build import load_kernels, unavailable_reason

__all__ = ["load_kernels", "unavailable_reason"]
