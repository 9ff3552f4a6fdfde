"""Weights on their grid, for conversions that round the float weight again: torch.ao's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def snap_weights(model: nn.Module) -> None:
    """Put every weight that LSC fake-quantizes on its grid, and freeze its range.

    torch.ao's conversions round the float weight again, and those in graph mode do not clip it: weights of fewer than 8
    bits come out right only where they lie on the grid already. The model computes the same before and after. To train
    on, call ``train()`` and apply ``torch.ao.quantization.enable_observer``.

    Args:
        model: A model from torch.ao's ``prepare_qat`` or ``prepare_qat_fx``, trained. Its layers get new weight
            parameters; the float model that it was prepared from, with which it shares them, stays as it is.

    Raises:
        NonFiniteError: NaN or infinity in a weight or range.

    Example:
        >>> prepared = prepare_qat_fx(network.train(), QConfigMapping().set_global(lsc_qconfig(4, 8)), inputs)
        >>> loss = prepared(inputs).square().mean()  # and train it
        >>> snap_weights(prepared.eval())
        >>> quantized = convert_fx(prepared)
    """
    layer: Any
    for name, layer in model.named_modules():
        quantizer: Any = getattr(layer, "weight_fake_quant", None)
        if not getattr(quantizer, "snapped", True):  # LSC's alone say whether they are
            quantizer.name = quantizer.name or name
            weight, factor = layer.weight.detach(), _folded_factor(layer)
            snapped = torch.where(factor != 0, quantizer.snap(weight * factor) / factor, weight)
            layer.weight = nn.Parameter(snapped, requires_grad=layer.weight.requires_grad)


def _folded_factor(layer: Any) -> Tensor:
    """What a layer's weight is multiplied by before it is quantized: torch.ao folds batch normalization into it."""
    bn, weight = getattr(layer, "bn", None), layer.weight
    if bn is None:
        return torch.ones((), device=weight.device)
    factor: Tensor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return factor.reshape(-1, *[1] * (weight.dim() - 1))
