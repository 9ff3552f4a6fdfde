"""Layers whose weights are dequantized once: what was trained, at the speed of float."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from ..errors import UnsupportedLayerError
from .packed import PackedIntxTensor

Layer = TypeVar("Layer", bound=nn.Module)

SMALL_BYTES = 64 * 2**20
"""Float weights of that size are kept where nothing faster runs; larger ones are dequantized in every call."""


def lower_dequantized(layer: Layer) -> Layer:
    """A copy of a packed layer that computes the same, with its weight in float.

    Args:
        layer: A deployed layer; not modified.

    Returns:
        The layer, which shares its bias.

    Raises:
        UnsupportedLayerError: Its weight is not packed.

    Example:
        >>> type(lower_dequantized(lower_packed(linear, packed)).weight)
        <class 'torch.nn.parameter.Parameter'>
    """
    weight = layer._parameters.get("weight")
    if not isinstance(weight, PackedIntxTensor):
        raise UnsupportedLayerError(f"the weight of a {type(layer).__name__} is not packed codes")
    lowered = copy.copy(layer)
    lowered._parameters = dict(layer._parameters)
    lowered._parameters["weight"] = nn.Parameter(weight.dequantize(), requires_grad=False)
    return lowered
