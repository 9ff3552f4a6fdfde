"""What oneDNN's int8 products can do on this processor, found by asking for small ones."""

from __future__ import annotations

import functools
import platform

import torch
from torch import Tensor

_LARGEST = 255, 127
"""Of a uint8 code and of an int8 weight."""


def why_no_onednn(device: torch.device) -> str | None:
    """Why oneDNN's int8 layers cannot run on a device, or would be slower there than float ones.

    Args:
        device: Where layers will run.

    Returns:
        None if they can, else the reason as a sentence.

    Example:
        >>> why_no_onednn(torch.device("cuda"))
        "oneDNN's int8 layers run on CPUs, not on cuda."
    """
    if device.type != "cpu":
        return f"oneDNN's int8 layers run on CPUs, not on {device.type}."
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"oneDNN's int8 layers are fast on x86-64, not on {platform.machine()}."
    if (capability := torch.backends.cpu.get_cpu_capability()) == "DEFAULT":
        return f"oneDNN's int8 layers need a CPU with AVX2; torch found the capability {capability}."
    if not torch.backends.mkldnn.is_available():
        return "The installed torch was built without oneDNN."
    return _probe()[0]


def saturates() -> bool:
    """Whether two products of large codes and weights overflow 16 bits, as they do on CPUs without VNNI.

    AVX2 and AVX512 alone add the products of two neighbours with saturation. An environment variable that keeps oneDNN
    from newer instructions (``ONEDNN_MAX_CPU_ISA``) counts.

    Raises:
        RuntimeError: The products cannot be computed here; :func:`why_no_onednn` gives the reason.

    Example:
        >>> fewer_than_16_bits = saturates()
    """
    reason, found = _probe()
    if reason is not None:
        raise RuntimeError(reason)
    return found


@functools.cache
def _probe() -> tuple[str | None, bool]:
    """Why there are no products, and whether they saturate."""
    code, weight = _LARGEST
    saturated = False
    try:
        for rows, inputs in ((1, 64), (32, 256)):
            out = _product(torch.full((rows, inputs), code), torch.full((16, inputs), weight))
            saturated |= not bool((out == code * weight * inputs).all())
        small = _product(torch.full((32, 256), code), torch.full((16, 256), -64))
    except (AttributeError, RuntimeError) as error:
        return f"The installed torch {torch.__version__} has no int8 products of oneDNN that run here: {error}", False
    if not bool((small == code * -64 * 256).all()):
        return "oneDNN's int8 products are not exact on this CPU.", saturated
    return None, saturated


def _product(codes: Tensor, weight: Tensor) -> Tensor:
    packed = torch.ops.onednn.qlinear_prepack(weight.to(torch.int8), None)
    outputs = weight.shape[0]
    ones, zeros = torch.ones(outputs, dtype=torch.float32), torch.zeros(outputs, dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(
        codes.to(torch.uint8), 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], "none"
    )
