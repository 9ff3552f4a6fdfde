"""How a weight's fake-quantizer starts: its range, from the weight and the layer's inputs, and its rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import QConfigError
from ..quantizers import LSCFakeQuantize, RangedFakeQuantize, broadcast_qparam
from .gptq import gptq_round

ROUNDINGS = ("nearest", "gptq")


@torch.no_grad()
def start_quantizer(
    quantizer: Any, weight: Tensor, gram: Tensor | None = None, rounding: str = "nearest", name: str = ""
) -> Tensor:
    """Start the range of a weight's quantizer, and round the weight.

    Args:
        quantizer: The weight's fake-quantizer; ranges of other than learnable ones start by themselves.
        weight: [out, ...].
        gram: X^T X of the layer's inputs, or None where it is not known: the range then has the least error of the
            weight instead of the output's.
        rounding: "nearest" leaves the weight as it is; "gptq" puts it on the grid with the output's error
            compensated, where ``gram`` is known.
        name: Of the layer, for errors.

    Returns:
        The weight, rounded or as it was.

    Raises:
        QConfigError: Unknown rounding, or "gptq" for a quantizer whose grid follows something else than LSC's.

    Example:
        >>> layer.weight.copy_(start_quantizer(layer.weight_fake_quant, layer.weight, gram, "gptq"))
    """
    if rounding not in ROUNDINGS:
        raise QConfigError(f"unknown rounding {rounding!r}: choose one of {', '.join(ROUNDINGS)}")
    if not isinstance(quantizer, LSCFakeQuantize):
        if rounding != "nearest":
            raise QConfigError(f"{name}: rounding={rounding!r} needs LSC's quantizer, not {type(quantizer).__name__}")
        if isinstance(quantizer, RangedFakeQuantize):
            quantizer.initialize(weight)
        return weight
    quantizer.initialize(weight, gram)
    if rounding == "nearest" or gram is None:
        return weight
    flat = (weight.shape[0], weight[0].numel())
    scale, zero_point = (broadcast_qparam(t, flat, quantizer.group_size) for t in quantizer.calculate_qparams())
    rounded = gptq_round(
        weight, gram, scale, zero_point, quantizer.quant_min, quantizer.quant_max, damping=0.01, name=name
    )
    quantizer.keep_scale(rounded)
    return rounded
