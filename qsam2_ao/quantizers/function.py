"""The autograd function of learnable statistical clipping: straight-through to x, LSQ's rule to alpha."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .affine import broadcast_qparam, fake_quantize_affine
from .statistics import memory_order, sum_rows

# grad where low < value < high, else 0: one vectorized pass, where torch.where and comparisons take several slow ones.
_pass_between: Callable[[Tensor, Tensor, float, float], Tensor] = torch.ops.aten.hardtanh_backward


class LSCFunction(torch.autograd.Function):
    """Fake-quantize in a clip range whose scale follows alpha.

    With s the scale, z the zero point and q the codes, the gradient to ``x`` passes inside the clip range and
    is zero outside; alpha receives ``alpha_factor * sum(g * d)`` with d = (q - z) - x / s inside the range
    and (quant_min - z) or (quant_max - z) outside, where ``alpha_factor`` holds ds/d alpha and the gradient
    scale.

    Nothing is kept for the backward pass but ``x`` in its own dtype and, where the range is of Python numbers, the
    output, which the layer behind keeps anyway.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: Tensor,
        scale: Tensor | float,
        zero_point: Tensor | float,
        alpha_factor: Tensor | float,
        at_limit: Tensor | bool,
        quant_range: tuple[int, int],
        granularity: str,
        group_size: int | None,
        shared: Callable[[], None] | None = None,
    ) -> Tensor:
        """Fake-quantize ``x``; ``alpha`` only takes part in the gradient.

        Args:
            ctx: Autograd context.
            x: Any shape and floating dtype.
            alpha: What is learned, shape [1], [out] or [out, n_groups], as all of the following tensors.
            scale: Step, float32; or a Python number, as the next three, for granularity "tensor".
            zero_point: Zero point, float32.
            alpha_factor: What alpha's gradient is multiplied by.
            at_limit: Where a larger alpha would change nothing: only gradients that shrink alpha pass there.
            quant_range: Smallest and largest code.
            granularity: "tensor", "channel" or "group".
            group_size: Inputs per group.
            shared: For a leaf ``x`` whose output several layers' calls share: called when a backward pass comes
                through. The output then takes part in several backward passes, as the leaf itself may.

        Returns:
            Fake-quantized ``x`` in its dtype.
        """
        wide_scale, wide_zero = _broadcast(x, scale, zero_point, granularity, group_size)
        out = fake_quantize_affine(x, wide_scale, wide_zero, *quant_range).to(x.dtype)
        ctx.settings = (quant_range, granularity, group_size)
        ctx.shared = shared
        ctx.numbers = None
        if isinstance(scale, Tensor):
            tensors = (x, scale, zero_point, alpha_factor, at_limit)
            if shared is None:
                ctx.save_for_backward(*tensors)
            else:  # autograd frees what is saved with the first backward pass
                ctx.leaf, ctx.version = tensors, x._version
        else:
            ctx.numbers = (scale, zero_point, alpha_factor, at_limit)
            ctx.save_for_backward(x, *((out,) if x.dtype == torch.float32 else ()))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to ``x`` and ``alpha``."""
        needed = ctx.needs_input_grad
        if ctx.shared is not None:
            ctx.shared()
            if ctx.leaf[0]._version != ctx.version:
                raise RuntimeError(
                    "a weight was modified in place between its fake quantization and the backward pass; take the "
                    "optimizer's step after the backward pass"
                )
            saved = ctx.leaf
        else:
            saved = ctx.saved_tensors
        if ctx.numbers is None:
            found = _gradients(grad, saved, ctx.settings, needed)
        elif len(saved) == 2:
            found = _gradients_of_numbers(grad, saved, ctx.numbers, ctx.settings[0], needed)
        else:
            scale, zero_point, factor, at_limit = ctx.numbers
            found = _gradients(
                grad, (*saved, scale, zero_point, factor, torch.tensor([at_limit])), ctx.settings, needed
            )
        return (*found, *[None] * 8)


def _gradients(
    grad: Tensor, saved: tuple[Any, ...], settings: tuple[Any, ...], needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to ``x`` and alpha from ``x`` alone."""
    x, scale, zero_point, alpha_factor, at_limit = saved
    quant_range, granularity, group_size = settings
    wide_scale, wide_zero = _broadcast(x, scale, zero_point, granularity, group_size)
    steps = x.float() / wide_scale
    steps.add_(wide_zero)
    grad, dtype = grad.float(), grad.dtype
    ends = _just_outside(*quant_range)
    grad_x = grad_alpha = None
    if needed[0]:
        grad_x = _pass_between(grad, steps, *ends).to(dtype)
    if needed[1]:
        inside = _pass_between(steps - wide_zero, steps, *ends)
        distance = steps.clamp_(*quant_range).round_().sub_(wide_zero).sub_(inside).mul_(grad)
        grad_alpha = sum_rows(distance, granularity, group_size) * alpha_factor
        grad_alpha = torch.where(at_limit, grad_alpha.clamp_min(0), grad_alpha)
    return grad_x, grad_alpha


def _gradients_of_numbers(
    grad: Tensor,
    saved: tuple[Tensor, ...],
    numbers: tuple[float, float, float, bool],
    quant_range: tuple[int, int],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to ``x`` and alpha of a range of Python numbers, float32, from ``x`` and the output.

    d = (output - x) / s inside the range and output / s outside.
    """
    (x, out), (scale, zero_point, alpha_factor, at_limit) = saved, numbers
    ends = _just_outside(*((code - zero_point) * scale for code in quant_range))
    grad_x = grad_alpha = None
    if needed[0]:
        grad_x = _pass_between(grad, x, *ends)
    if needed[1]:
        distance = _pass_between(x, x, *ends)
        torch.sub(out, distance, out=distance)
        if grad.stride() == distance.stride():
            total = torch.dot(memory_order(grad), memory_order(distance))
        else:
            total = distance.mul_(grad).sum()
        grad_alpha = (total * (alpha_factor / scale)).reshape(1)
        if at_limit:
            grad_alpha = grad_alpha.clamp_min_(0)
    return grad_x, grad_alpha


def _just_outside(low: float, high: float) -> tuple[float, float]:
    """Ends of an open interval that holds the float32 numbers from ``low`` to ``high``, both included."""
    below, above = (torch.finfo(torch.float32).eps * abs(end) + 1e-30 for end in (low, high))
    return low - below, high + above


def _broadcast(
    x: Tensor, scale: Tensor | float, zero_point: Tensor | float, granularity: str, group_size: int | None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point in a shape that broadcasts against ``x``."""
    if not isinstance(scale, Tensor):
        return cast(Tensor, scale), cast(Tensor, zero_point)
    zero_point = cast(Tensor, zero_point)
    if granularity == "tensor":
        return scale.reshape(()), zero_point.reshape(())
    shape = tuple(x.shape)
    return broadcast_qparam(scale, shape, group_size), broadcast_qparam(zero_point, shape, group_size)
