"""Catching a training that goes wrong: NaN anywhere, or a clipping range that collapsed or ran away."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..errors import NonFiniteError
from ..quantizers import LSCFakeQuantize
from ..recipe import fake_quantizers

#: Half widths of a clipping range, in standard deviations, that no useful training reaches.
SMALLEST_ALPHA, LARGEST_ALPHA = 1e-3, 1e4


@torch.no_grad()
def check_ranges(model: nn.Module) -> None:
    """Refuse quantizers whose range is not finite, has collapsed, or ran away.

    Args:
        model: A prepared model; models without fake-quantizers pass.

    Raises:
        NonFiniteError: Naming the layer and what its range became.

    Example:
        >>> check_ranges(prepared)
    """
    found = [(name, q) for name, q in fake_quantizers(model) if isinstance(q, LSCFakeQuantize) and q.is_initialized]
    if not found:
        return
    # One look at the device for the whole model.
    lows = torch.stack([q.alpha_bar.min() for _, q in found]).tolist()
    highs = torch.stack([q.alpha_bar.max() for _, q in found]).tolist()
    for (name, quantizer), low, high in zip(found, lows, highs, strict=True):
        if math.isfinite(low) and math.isfinite(high) and low >= SMALLEST_ALPHA and high <= LARGEST_ALPHA:
            continue
        what = "is not finite" if not math.isfinite(low + high) else "collapsed" if low < SMALLEST_ALPHA else "ran away"
        raise NonFiniteError(
            f"{quantizer.name or name}: its clipping range {what} (alpha from {low:.3g} to {high:.3g} standard "
            "deviations); lower the learning rate of the ranges"
        )


@torch.no_grad()
def name_culprit(model: nn.Module) -> str:
    """Where a training that gave no finite loss went wrong, for the error message.

    Args:
        model: The model, with the gradients of the last step where there are any.

    Returns:
        The first parameter, buffer or gradient that is not finite, or that none is.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"{name} is not finite"
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of {name} is not finite"
    return "all weights and ranges are finite"
