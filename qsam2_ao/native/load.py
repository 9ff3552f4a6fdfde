"""Which kernels a device has, and loading them."""

from __future__ import annotations

import platform

import torch

from ..errors import UnsupportedLayerError
from . import build, cuda

_CPU = torch.device("cpu")


def why_no_kernels(device: torch.device = _CPU) -> str | None:
    """Why the kernels cannot run on a device, as far as is known before they are compiled.

    Args:
        device: A CPU or a GPU.

    Returns:
        None if they can, else the reason as a sentence.

    Example:
        >>> why_no_kernels() is None  # on Linux with AVX2 or Arm's dot products, and a compiler
        True
    """
    if device.type == "cpu":
        return build.why_no_cpu_kernels()
    if device.type == "cuda":
        return cuda.why_no_cuda_kernels(device)
    return f"The int8 kernels run on CPUs and NVIDIA GPUs, not on {device.type}."


def why_unfit_for_kernels(device: torch.device = _CPU) -> str | None:
    """Why a device itself is not one for the kernels; None if only something that can be installed is missing."""
    return build.why_unfit_cpu() if device.type == "cpu" else why_no_kernels(device)


def why_untimed(device: torch.device = _CPU) -> str | None:
    """Why nobody knows whether the kernels are faster than float on a device that they run on; None if they are.

    Example:
        >>> why_untimed(torch.device("cuda")) is None
        True
    """
    if device.type == "cpu" and platform.machine() == "aarch64" and build.why_unfit_cpu() is None:
        return 'The int8 kernels were never timed on an Arm CPU: see whether target="int8" is faster on yours.'
    return None


def load_kernels(device: torch.device = _CPU) -> None:
    """Make ``torch.ops.qsam2`` callable; where no wheel brought the CPU's, they are compiled once.

    Args:
        device: Where they will run.

    Raises:
        UnsupportedLayerError: They cannot run there, or the compiler failed; with the reason.

    Example:
        >>> load_kernels()
        >>> torch.ops.qsam2.quantize(torch.tensor([0.2, 9.0]), 0.5, 1.0, 255)
        tensor([ 1, 19], dtype=torch.uint8)
    """
    reason = why_no_kernels(device)
    if reason is not None:
        raise UnsupportedLayerError(f"cannot load the int8 kernels: {reason}")
    from . import ops  # noqa: F401 - declares the operators

    if device.type == "cuda":
        cuda.implement(device)
    else:
        build.implement()


def trim_pool() -> int:
    """Give back the memory that the CPU's kernels keep for their next results.

    It is up to 256 MiB for the whole process, and goes back by itself half a minute after the kernels ran last. Memory
    of results that are still there is not touched. What GPUs keep is torch's: ``torch.cuda.empty_cache``.

    Returns:
        Bytes that were given back; 0 where the kernels were never loaded.

    Example:
        >>> freed = trim_pool()
        >>> trim_pool()
        0
    """
    return int(torch.ops.qsam2.trim_pool()) if build.is_loaded() else 0


def fast_float(device: torch.device = _CPU) -> torch.dtype:
    """The faster of bfloat16 and float32 for matrix products on a device.

    x86-64 CPUs without AVX512-BF16 have no instructions for bfloat16, which takes them longer than float32.

    Example:
        >>> fast_float(torch.device("cuda"))
        torch.bfloat16
    """
    slow = device.type == "cpu" and platform.machine() == "x86_64" and not build.bf16_supported()
    return torch.float32 if slow else torch.bfloat16


def code_offset(device: torch.device) -> int:
    """What a device's ``linear`` takes from the unsigned codes of its input before it multiplies them.

    Tensor cores and Arm's NEON multiply int8 by int8, x86-64 CPUs uint8 by int8.
    """
    return 128 if device.type == "cuda" or platform.machine() == "aarch64" else 0


def kernels_layout(device: torch.device) -> str:
    """What the layout of weights depends on; those that are laid out for other kernels are read wrongly.

    Example:
        >>> kernels_layout(torch.device("cpu")).startswith("cpu ")
        True
    """
    return f"{device.type} {(build if device.type == 'cpu' else cuda).digest()[:16]}"
