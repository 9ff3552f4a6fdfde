"""The kernels that a lowered model runs on: in C++ with AVX-512, AVX2 or NEON for CPUs, in Triton for NVIDIA GPUs."""

from .load import (
    code_offset,
    fast_float,
    kernels_layout,
    load_kernels,
    trim_pool,
    why_no_kernels,
    why_unfit_for_kernels,
    why_untimed,
)

__all__ = [
    "code_offset",
    "fast_float",
    "kernels_layout",
    "load_kernels",
    "trim_pool",
    "why_no_kernels",
    "why_unfit_for_kernels",
    "why_untimed",
]
