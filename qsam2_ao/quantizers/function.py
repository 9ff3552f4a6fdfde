"""The autograd function of learnable statistical clipping: straight-through to x, LSQ's rule to alpha."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .affine import broadcast_qparam, fake_quantize_affine
from .statistics import sum_rows


class LSCFunction(torch.autograd.Function):
    """Fake-quantize in a clip range whose scale follows alpha.

    With s the scale, z the zero point and q the codes, the gradient to ``x`` passes inside the clip range and
    is zero outside; alpha receives ``alpha_factor * sum(g * d)`` with d = (q - z) - x / s inside the range
    and (quant_min - z) or (quant_max - z) outside, where ``alpha_factor`` holds ds/d alpha and the gradient
    scale. Only ``x`` is kept for the backward pass, in its own dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        alpha_factor: Tensor,
        at_limit: Tensor,
        quant_range: tuple[int, int],
        granularity: str,
        group_size: int | None,
    ) -> Tensor:
        """Fake-quantize ``x``; ``alpha`` only takes part in the gradient.

        Args:
            ctx: Autograd context.
            x: Any shape and floating dtype.
            alpha: Shape [1], [out] or [out, n_groups], as all of the following tensors.
            scale: Step, float32.
            zero_point: Zero point, float32.
            alpha_factor: What alpha's gradient is multiplied by.
            at_limit: Where a larger alpha would change nothing: only gradients that shrink alpha pass there.
            quant_range: Smallest and largest code.
            granularity: "tensor", "channel" or "group".
            group_size: Inputs per group.

        Returns:
            Fake-quantized ``x`` in its dtype.
        """
        ctx.save_for_backward(x, scale, zero_point, alpha_factor, at_limit)
        ctx.settings = (quant_range, granularity, group_size)
        wide_scale, wide_zero = _broadcast(x, scale, zero_point, granularity, group_size)
        return fake_quantize_affine(x, wide_scale, wide_zero, *quant_range).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to ``x`` and ``alpha``."""
        x, scale, zero_point, alpha_factor, at_limit = ctx.saved_tensors
        (quant_min, quant_max), granularity, group_size = ctx.settings
        wide_scale, wide_zero = _broadcast(x, scale, zero_point, granularity, group_size)
        steps = x.float() / wide_scale
        steps.add_(wide_zero)
        clipped = steps.clamp(quant_min, quant_max)
        inside = clipped == steps
        grad_x = grad_alpha = None
        if ctx.needs_input_grad[1]:
            torch.where(inside, steps, wide_zero, out=steps)
            per_scale = clipped.round_().sub_(steps).mul_(grad)
            grad_alpha = sum_rows(per_scale, granularity, group_size) * alpha_factor
            grad_alpha = torch.where(at_limit, grad_alpha.clamp_min(0), grad_alpha)
        if ctx.needs_input_grad[0]:
            # Into memory that is at hand: on the CPU a fresh buffer costs more than the selection itself.
            out = steps if steps.dtype == grad.dtype else None
            grad_x = torch.where(inside, grad, grad.new_zeros(()), out=out)
        return grad_x, grad_alpha, None, None, None, None, None, None, None


def _broadcast(
    x: Tensor, scale: Tensor, zero_point: Tensor, granularity: str, group_size: int | None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point in a shape that broadcasts against ``x``."""
    if granularity == "tensor":
        return scale.reshape(()), zero_point.reshape(())
    shape = tuple(x.shape)
    return broadcast_qparam(scale, shape, group_size), broadcast_qparam(zero_point, shape, group_size)
