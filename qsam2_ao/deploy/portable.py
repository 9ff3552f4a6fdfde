"""The portable target: the float layer with a packed weight, computing in float on any device."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import UnsupportedLayerError
from .packed import PackedIntxTensor

_SAID: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed"),
        *("output_padding", "groups", "padding_mode", "_reversed_padding_repeated_twice"),
    ),
}
"""What a layer says of itself."""


def why_not_packed(module: nn.Module, packed: PackedIntxTensor) -> str | None:
    """Why a layer cannot take a packed weight.

    Args:
        module: The float or fake-quantized layer.
        packed: Its weight.

    Returns:
        None if :func:`lower_packed` supports it, else the reason as a sentence.
    """
    kind = type(module)
    # Fake-quantized layers derive from the float ones and differ in how they come by their weight only; what
    # another subclass computes is unknown.
    if not isinstance(module, nn.Linear | nn.Conv2d) or (
        kind not in (nn.Linear, nn.Conv2d) and not hasattr(module, "weight_fake_quant")
    ):
        return f"{kind.__module__}.{kind.__qualname__} is neither nn.Linear nor nn.Conv2d."
    if module.weight.shape != packed.shape:
        return f"The weight of {kind.__name__} is {list(module.weight.shape)}, the codes {list(packed.shape)}."
    return None


def lower_packed(
    module: nn.Module, packed: PackedIntxTensor, device: torch.device | str | None = None
) -> nn.Linear | nn.Conv2d:
    """Build the deployed layer of a linear layer or convolution: the same but for its packed weight.

    Args:
        module: ``nn.Linear``, ``nn.Conv2d`` or the fake-quantized version of one, on any device, the meta
            device included; not modified.
        packed: The weight's codes, in the shape of ``module.weight``.
        device: Where the layer will run; by default everything stays where it is.

    Returns:
        A plain ``nn.Linear`` or ``nn.Conv2d`` that shares ``module``'s bias, in ``module``'s train or eval
        mode.

    Raises:
        UnsupportedLayerError: Another kind of module, or shapes that differ.

    Example:
        >>> deployed = lower_packed(linear, packed)
    """
    reason = why_not_packed(module, packed)
    if reason is not None:
        raise UnsupportedLayerError(f"cannot give this layer a packed weight: {reason}")
    kind: type[nn.Linear] | type[nn.Conv2d] = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    # Without their constructors, which make a weight and set it at random first.
    lowered = kind.__new__(kind)
    nn.Module.__init__(lowered)
    vars(lowered).update({name: getattr(module, name) for name in _SAID[kind]})
    lowered.weight = nn.Parameter(packed, requires_grad=False)
    lowered.register_parameter("bias", module.bias)  # type: ignore[arg-type]
    lowered.train(module.training)
    return lowered if device is None else lowered.to(device)
