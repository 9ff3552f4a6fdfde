"""What implements ``torch.ops.qsam2`` on an NVIDIA GPU: Triton's kernels, and torch's own attention."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnsupportedLayerError

_LOCK = threading.Lock()
_CAPABILITY = (8, 0)
"""The oldest with bfloat16 and int8 tensor cores (Ampere)."""


def why_no_cuda_kernels(device: torch.device) -> str | None:
    """Why a GPU cannot run the kernels; None if it can."""
    if not torch.cuda.is_available():
        return "No CUDA device is available."
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < _CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"The kernels need an NVIDIA GPU of compute capability {'.'.join(map(str, _CAPABILITY))}, not {name}."
    if importlib.util.find_spec("triton") is None:
        return "The kernels for GPUs need the package triton; install a torch for CUDA, which brings it."
    return None


def implement(device: torch.device) -> None:
    """Register the kernels, once per process, and see that one runs on a device.

    Raises:
        UnsupportedLayerError: Triton cannot compile or launch it.
    """
    try:
        with _LOCK:
            _library()
        torch.ops.qsam2.quantize(torch.zeros(1, device=device), 1.0, 0.0, 255)
    except Exception as error:  # Triton's are of many kinds: no C compiler, a foreign driver, no folder to write to
        reason = f"{type(error).__name__}: {str(error).strip()[-500:]}"
        raise UnsupportedLayerError(f"Triton cannot run the kernels on {device} ({reason}).") from error


@functools.cache
def digest() -> str:
    """Of the kernels' source."""
    sources = sorted(Path(__file__).parent.glob("triton_*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


@functools.cache
def _library() -> torch.library.Library:
    """The registrations, which live as long as this object."""
    library = torch.library.Library("qsam2", "IMPL", "CUDA")
    for name, function in kernels().items():
        library.impl(name, on_its_device(function))
    return library


def kernels() -> dict[str, Callable[..., Any]]:
    """The implementations of ``torch.ops.qsam2`` by name.

    Raises:
        ImportError: The package triton is not installed.
    """
    from . import triton_kernels, triton_linear

    functions: dict[str, Callable[..., Any]] = {"attention": attention}
    for module, names in (
        (triton_linear, ("pack_weight", "linear")),
        (triton_kernels, ("quantize", "patches", "layer_norm", "window_attention")),
    ):
        functions |= {name: getattr(module, name) for name in names}
    return functions


def decodable(codes: Tensor, bits: int, table: Tensor) -> tuple[Tensor, int]:
    """Codes that the kernels decode: as they are if zero is in their middle, else at 8 bits, around 128.

    Args:
        codes: uint8.
        bits: 2, 3, 4 or 8.
        table: What each code of fewer than 8 bits stands for, int8.

    Returns:
        Codes, and their bits.

    Example:
        >>> codes = torch.tensor([0, 15], dtype=torch.uint8)
        >>> decodable(codes, 4, (2 * torch.arange(16) - 15).to(torch.int8))[1]
        4
        >>> decodable(codes, 4, (torch.arange(16) - 3).to(torch.int8))
        (tensor([125, 140], dtype=torch.uint8), 8)
    """
    if bits == 8:
        return codes, bits
    places = torch.arange(2**bits, device=table.device)
    values = table[: 2**bits].long()
    if torch.equal(values, 2 * places - (2**bits - 1)) or torch.equal(values, places - 2 ** (bits - 1)):
        return codes, bits
    return (values[codes.long()] + 128).to(torch.uint8), 8


def on_its_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A function that launches Triton's kernels, which run on the current device, on that of its first argument."""

    @functools.wraps(kernel)
    def launch(x: Tensor, *args: Any) -> Any:
        with torch.cuda.device(x.device):
            return kernel(x, *args)

    return launch


def attention(
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
    """``[B, heads, N, c]``, ``[B, heads, M, c]`` and ``[B, heads, M, d]`` -> ``[B, N, heads, d]``."""
    if int8_scores or v.shape[-1] < q.shape[-1]:
        from .triton_attention import attention_in_parts

        return attention_in_parts(q, k, v, scale, int8_scores, out_dtype, out_scale, out_zero_point, out_max)
    out = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
    if out_dtype == torch.uint8:
        from .triton_kernels import quantize

        out = quantize(out, out_scale, out_zero_point, out_max)
    return out.contiguous()
