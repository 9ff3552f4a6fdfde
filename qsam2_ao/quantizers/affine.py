"""The arithmetic of uniform affine quantization, which training and deployment share to the bit.

``codes = clamp(round(x / scale + zero_point), quant_min, quant_max)`` and
``x_hat = (codes - zero_point) * scale``, in float32, rounding half to even. The zero point is a float: an
integer for activations and for signed or asymmetric weights, a half-integer for the mid-rise weight grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

GRANULARITIES = ("tensor", "channel", "group")
"""What shares one scale and zero point: a whole tensor, an output channel, or a group of a channel's inputs."""


def quantize_affine(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Round to the integer codes of a uniform grid.

    Args:
        x: Values of any shape and floating dtype; computed with in float32.
        scale: Step of the grid, float32, positive, broadcastable to ``x`` (see :func:`broadcast_qparam`).
        zero_point: Code (possibly fractional) that stands for zero, float32, broadcastable to ``x``.
        quant_min: Smallest code.
        quant_max: Largest code.

    Returns:
        Integer-valued float32 tensor of ``x``'s shape.

    Example:
        >>> quantize_affine(torch.tensor([-1.0, 0.2, 9.0]), torch.tensor([0.5]), torch.tensor([1.0]), 0, 3)
        tensor([0., 1., 3.])
    """
    return torch.round(x.float() / scale + zero_point).clamp(quant_min, quant_max)


def dequantize_affine(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Map integer codes back to values.

    Args:
        codes: Integer codes (any dtype).
        scale: Step of the grid, float32, broadcastable to ``codes``.
        zero_point: Code that stands for zero, float32, broadcastable to ``codes``.

    Returns:
        float32 tensor of ``codes``'s shape.

    Example:
        >>> dequantize_affine(torch.tensor([0, 1, 3]), torch.tensor([0.5]), torch.tensor([1.0]))
        tensor([-0.5000,  0.0000,  1.0000])
    """
    return (codes.float() - zero_point) * scale


def fake_quantize_affine(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Quantize and dequantize with one temporary: equal to the two functions above to the bit.

    Args:
        x: Values of any shape and floating dtype.
        scale: Step of the grid, float32, broadcastable to ``x``.
        zero_point: Code that stands for zero, float32, broadcastable to ``x``.
        quant_min: Smallest code.
        quant_max: Largest code.

    Returns:
        float32 tensor of ``x``'s shape, on the grid.
    """
    steps = x.float() / scale
    steps.add_(zero_point).round_().clamp_(quant_min, quant_max)
    return steps.sub_(zero_point).mul_(scale)


def expand_groups(t: Tensor, in_features: int, group_size: int) -> Tensor:
    """Repeat one value per group of inputs along the inputs; the last group may be shorter.

    Args:
        t: Values of shape [out, ceil(in_features / group_size)].
        in_features: Length of a weight row, ``weight.reshape(out, -1).shape[1]``.
        group_size: Inputs per group.

    Returns:
        Tensor of shape [out, in_features].

    Raises:
        ValueError: ``t`` does not have one column per group.

    Example:
        >>> expand_groups(torch.tensor([[1.0, 2.0]]), in_features=3, group_size=2)
        tensor([[1., 1., 2.]])
    """
    groups = -(-in_features // group_size)
    if t.dim() != 2 or t.shape[1] != groups:
        raise ValueError(
            f"expected a tensor of shape [out, {groups}] for {in_features} inputs in groups of {group_size}, "
            f"got {list(t.shape)}"
        )
    expanded = t.unsqueeze(-1).expand(t.shape[0], groups, group_size)
    return expanded.reshape(t.shape[0], groups * group_size)[:, :in_features]


def broadcast_qparam(t: Tensor, weight_shape: torch.Size | tuple[int, ...], group_size: int | None = None) -> Tensor:
    """Reshape a scale or zero point so that it broadcasts against the tensor that it belongs to.

    Args:
        t: Shape [1] (per tensor), [out] (per channel), or [out, n_groups] (per group).
        weight_shape: Shape of the quantized tensor; its first dimension is the output channel.
        group_size: Inputs per group along the flattened input dimensions, for a two-dimensional ``t``.

    Returns:
        A tensor that broadcasts against ``weight_shape``.

    Raises:
        ValueError: The shapes do not belong together.
    """
    if t.numel() == 1 and t.dim() < 2:
        return t.reshape(1)
    out = weight_shape[0]
    if t.shape[0] != out:
        raise ValueError(f"quantization parameters of shape {list(t.shape)} do not fit {out} output channels")
    if t.dim() == 1:
        return t.reshape(out, *[1] * (len(weight_shape) - 1))
    if group_size is None:
        raise ValueError(f"quantization parameters of shape {list(t.shape)} need a group size")
    in_features = 1
    for size in weight_shape[1:]:
        in_features *= size
    return expand_groups(t, in_features, group_size).reshape(weight_shape)
