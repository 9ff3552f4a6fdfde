"""Where torch.ao's conversion would go wrong with a quantizer's range, without a word."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import QConfigError

if TYPE_CHECKING:
    from .lsc import LSCFakeQuantize

_CLIPPING = "torch.ao.nn.quantized."
# Two products of an unsigned 8-bit and a signed code sum up in 16 bits: 2 * 255 * 64 still fits.
_LARGEST_SAFE_CODE = 64


def check_conversion(quantizer: LSCFakeQuantize, caller: str, depthwise: bool) -> None:
    """Refuse a conversion by torch.ao that would give other values than the quantizer, or warn of its kernels.

    torch.ao rounds weights and inputs to int8 and uint8 codes with the scale and zero point that it asks for. Its graph
    mode then clips at the ends of those types, where grids of fewer bits end earlier; its eager mode clips weights at
    the quantizer's own ends. The mid-rise grid, whose codes are the odd ones, needs weights that lie on it already.

    A warning says where 8-bit weights are clipped one step later, and where torch's kernels can overflow.

    Args:
        quantizer: The quantizer that is asked.
        caller: Name of torch.ao's module that asks.
        depthwise: Whether its weight is a depthwise convolution's.

    Raises:
        QConfigError: The result would be wrong.
    """
    if quantizer.granularity == "group":
        raise QConfigError(
            f"{quantizer.who}: torch.ao has no scales per group of inputs; choose granularity='channel' or 'tensor'"
        )
    if not quantizer.is_weight:
        if quantizer.bits < 8:
            raise QConfigError(
                f"{quantizer.who}: torch.ao's conversion does not clip inputs to {quantizer.bits} bits; choose 8-bit "
                "activations, or torch.ao's decomposed reference"
            )
        return
    rounds_right = quantizer.grid != "midrise" and (quantizer.bits == 8 or caller.startswith(_CLIPPING))
    if not (quantizer.snapped or rounds_right):
        raise QConfigError(
            f"{quantizer.who}: torch.ao would round the float weight again, and miss its {quantizer.bits}-bit "
            f"grid {quantizer.grid!r}; call qsam2_ao.snap_weights(model) right before it, or prepare and convert with "
            "backend_config=qsam2_backend_config(), or choose 8 bits with grid='symmetric'"
        )
    if not quantizer.snapped and not caller.startswith(_CLIPPING) and _reaches_below(quantizer):
        warnings.warn(
            f"{quantizer.who}: torch.ao clips weights at code -128 and LSC at -127, so some get one step off; "
            "call qsam2_ao.snap_weights(model) right before the conversion",
            stacklevel=3,
        )
    if _saturates(quantizer, depthwise):
        warnings.warn(
            f"{quantizer.who}: torch's {torch.backends.quantized.engine} kernels add up products in 16 bits"
            + (" for depthwise convolutions" if depthwise else " on this CPU")
            + f", which {quantizer.bits}-bit weights on grid {quantizer.grid!r} can overflow; choose 7 bits (mid-rise: "
            "6) where the network is to run on them",
            stacklevel=3,
        )


def is_depthwise(weight: Tensor) -> bool:
    """Whether a weight is that of a depthwise convolution, [out, 1, ...]."""
    return weight.dim() > 2 and weight.shape[1] == 1 < weight.shape[0]


def _reaches_below(quantizer: LSCFakeQuantize) -> bool:
    """Whether a weight is so low that it would get a code of int8 below the grid's."""
    scale, _ = quantizer.qparams()
    return quantizer.grid == "symmetric" and bool((quantizer.low < (quantizer.quant_min - 0.5) * scale).any())


def _saturates(quantizer: LSCFakeQuantize, depthwise: bool) -> bool:
    largest = max(-quantizer.quant_min, quantizer.quant_max)
    in_16_bits = torch.backends.quantized.engine in ("fbgemm", "x86")
    return largest > _LARGEST_SAFE_CODE and in_16_bits and (depthwise or not torch.cpu._is_vnni_supported())
