"""The autograd function of learnable statistical clipping: straight-through to x, LSQ's rule to alpha."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .affine import broadcast_qparam, fake_quantize_affine
from .statistics import as_vector, sum_rows

_EPS = torch.finfo(torch.float32).eps
# grad where low < value < high, else 0: one vectorized pass, where torch.where and comparisons take several slow ones.
_pass_between: Callable[[Tensor, Tensor, float, float], Tensor] = torch.ops.aten.hardtanh_backward.default


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
        parameters = (scale, zero_point, alpha_factor, at_limit)
        wide_scale, wide_zero = _broadcast(x, scale, zero_point, granularity, group_size)
        out = fake_quantize_affine(x, wide_scale, wide_zero, *quant_range).to(x.dtype)
        ctx.settings = (quant_range, granularity, group_size)
        ctx.shared = shared
        if shared is not None:  # autograd would free what is saved with the first backward pass
            ctx.leaf, ctx.version = (x, None, *parameters), x._version
            return out
        numbers = not isinstance(scale, Tensor) and x.dtype == torch.float32
        ctx.numbers = tuple(None if isinstance(p, Tensor) else p for p in parameters)
        ctx.save_for_backward(x, out if numbers else None, *(p if isinstance(p, Tensor) else None for p in parameters))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to ``x`` and ``alpha``."""
        if ctx.shared is not None:
            ctx.shared()
            if ctx.leaf[0]._version != ctx.version:
                raise RuntimeError(
                    "a weight was modified in place between its fake quantization and the backward pass; take the "
                    "optimizer's step after the backward pass"
                )
            x, out, *parameters = ctx.leaf
        else:
            x, out, *tensors = ctx.saved_tensors
            parameters = [n if t is None else t for t, n in zip(tensors, ctx.numbers, strict=True)]
        scale, zero_point, factor, at_limit = parameters
        needed = ctx.needs_input_grad
        if out is None:
            grad_x, total = _from_input(grad, x, scale, zero_point, ctx.settings, needed)
        else:
            grad_x, total = _from_input_and_output(grad, x, out, scale, zero_point, ctx.settings[0], needed)
        grad_alpha = None if total is None else total * factor
        if grad_alpha is not None and at_limit is not False:
            shrinking = grad_alpha.clamp_min(0)
            grad_alpha = shrinking if at_limit is True else torch.where(at_limit, shrinking, grad_alpha)
        return (grad_x, grad_alpha, *_NO_GRADIENTS)


_NO_GRADIENTS = (None,) * 8  # of the arguments after alpha


def _from_input(
    grad: Tensor,
    x: Tensor,
    scale: Any,
    zero_point: Any,
    settings: tuple[tuple[int, int], str, int | None],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient to ``x``, and sum(g * d) per scale, computed once more from ``x``."""
    quant_range, granularity, group_size = settings
    wide_scale, wide_zero = _broadcast(x, scale, zero_point, granularity, group_size)
    steps = x.float() / wide_scale
    steps.add_(wide_zero)
    grad, dtype = grad.float(), grad.dtype
    ends = _just_outside(*quant_range)
    grad_x = _pass_between(grad, steps, *ends).to(dtype) if needed[0] else None
    if not needed[1]:
        return grad_x, None
    inside = _pass_between(steps - wide_zero, steps, *ends)
    distance = steps.clamp_(*quant_range).round_().sub_(wide_zero).sub_(inside).mul_(grad)
    return grad_x, sum_rows(distance, granularity, group_size)


def _from_input_and_output(
    grad: Tensor,
    x: Tensor,
    out: Tensor,
    scale: float,
    zero_point: float,
    quant_range: tuple[int, int],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """The same for a range of Python numbers: s * d is output - x inside the range and the output outside."""
    ends = _just_outside((quant_range[0] - zero_point) * scale, (quant_range[1] - zero_point) * scale)
    grad_x = _pass_between(grad, x, *ends) if needed[0] else None
    if not needed[1]:
        return grad_x, None
    distance = _pass_between(x, x, *ends)
    torch.sub(out, distance, out=distance)
    if grad.stride() == distance.stride():
        total = torch.dot(as_vector(grad), as_vector(distance))
    else:
        total = distance.mul_(grad).sum()
    return grad_x, (total / scale).reshape(1)


def _just_outside(low: float, high: float) -> tuple[float, float]:
    """Ends of an open interval that holds the float32 numbers from ``low`` to ``high``, both included."""
    return low - _EPS * abs(low) - 1e-30, high + _EPS * abs(high) + 1e-30


def _broadcast(
    x: Tensor, scale: Tensor | float, zero_point: Tensor | float, granularity: str, group_size: int | None
) -> tuple[Tensor, Tensor]:
    """Scale and zero point in a shape that broadcasts against ``x``; numbers as they are."""
    wide = [
        value
        if not isinstance(value, Tensor)
        else value.reshape(())
        if granularity == "tensor"
        else broadcast_qparam(value, tuple(x.shape), group_size)
        for value in (scale, zero_point)
    ]
    return cast("tuple[Tensor, Tensor]", tuple(wide))
