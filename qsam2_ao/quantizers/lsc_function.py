"""The autograd function of learnable statistical clipping: straight-through to x, LSQ's rule to alpha."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..native.cuda import on_its_device, why_no_cuda_kernels
from .affine import broadcast_qparam, fake_quantize_affine
from .grids import ClipRange
from .scalar_ranges import ScalarRange, as_vector
from .statistics import sum_rows

_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_EPS = torch.finfo(torch.float32).eps
# grad where low < value < high, else 0: one vectorized pass, where torch.where and comparisons take several slow ones.
_pass_between: Callable[[Tensor, Tensor, float, float], Tensor] = torch.ops.aten.hardtanh_backward.default


class LSCSettings(NamedTuple):
    """What does not change while training.

    Attributes:
        quant_min: Smallest code.
        quant_max: Largest code.
        granularity: "tensor", "channel" or "group".
        group_size: Inputs per group.
    """

    quant_min: int
    quant_max: int
    granularity: str
    group_size: int | None


class CachedWeight(NamedTuple):
    """What a weight's fake quantization keeps by itself when several calls share its output.

    Attributes:
        copy: Of the weight, which may change before the backward pass comes.
        dropped: Called when a backward pass comes through.
    """

    copy: Tensor
    dropped: Callable[[], None]


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
        clip: ClipRange | ScalarRange,
        alpha_factor: Tensor | float,
        settings: LSCSettings,
        shared: CachedWeight | None = None,
    ) -> Tensor:
        """Fake-quantize ``x``; ``alpha`` only takes part in the gradient.

        Args:
            ctx: Autograd context.
            x: Any shape and floating dtype.
            alpha: What is learned, shape [1], [out] or [out, n_groups], as the tensors of the range.
            clip: The range.
            alpha_factor: What alpha's gradient is multiplied by.
            settings: Codes and granularity.
            shared: For a leaf ``x`` whose output several layers' calls share. The output then takes part in several
                backward passes, as the leaf itself may.

        Returns:
            Fake-quantized ``x`` in its dtype.
        """
        parameters = (clip.scale, clip.zero_point, alpha_factor)
        if isinstance(clip, ClipRange) and fused(x):
            from .lsc_triton import fake_quantize

            out = on_its_device(fake_quantize)(x, clip.scale, clip.zero_point, *settings)
        else:
            scale, zero_point = _broadcast(x, clip.scale, clip.zero_point, settings)
            out = fake_quantize_affine(x, scale, zero_point, settings.quant_min, settings.quant_max).to(x.dtype)
        ctx.settings, ctx.shared = settings, shared
        if shared is not None:  # autograd would free what is saved with the first backward pass
            ctx.leaf, ctx.numbers = (shared.copy, *parameters), None
        elif isinstance(clip, ScalarRange):
            ctx.numbers = parameters
            ctx.save_for_backward(x, out if x.dtype == torch.float32 else None)
        else:
            ctx.numbers = None
            ctx.save_for_backward(x, *cast("tuple[Tensor, ...]", parameters))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to ``x`` and ``alpha``."""
        if ctx.shared is not None:
            ctx.shared.dropped()
        needed = ctx.needs_input_grad
        out = None
        if ctx.numbers is None:
            x, scale, zero_point, factor = ctx.leaf if ctx.shared is not None else ctx.saved_tensors
        else:
            x, out = ctx.saved_tensors
            scale, zero_point, factor = ctx.numbers
        if out is None:
            grad_x, total = _from_input(grad, x, scale, zero_point, ctx.settings, needed)
        else:
            grad_x, total = _from_input_and_output(grad, x, out, scale, zero_point, ctx.settings, needed)
        if total is None:
            return grad_x, None, None, None, None, None
        return grad_x, total * factor, None, None, None, None


def fused(x: Tensor) -> bool:
    """Whether the kernels for GPUs can take a tensor; torch.compile fuses torch's operators itself."""
    if not x.is_cuda or x.dtype not in _FUSED_DTYPES or torch.compiler.is_compiling():
        return False
    return _has_kernels(x.device)


@cache
def _has_kernels(device: torch.device) -> bool:
    return why_no_cuda_kernels(device) is None


def _from_input(
    grad: Tensor,
    x: Tensor,
    scale: Any,
    zero_point: Any,
    settings: LSCSettings,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient to ``x``, and sum(g * d) per scale, computed once more from ``x``."""
    ends = _just_outside(settings.quant_min, settings.quant_max)
    if needed[1] and isinstance(scale, Tensor) and fused(x):
        from .lsc_triton import gradients

        grad_x, total = on_its_device(gradients)(grad, x, scale, zero_point, ends, *settings)
        return grad_x if needed[0] else None, total
    wide_scale, wide_zero = _broadcast(x, scale, zero_point, settings)
    steps = x.float() / wide_scale
    steps.add_(wide_zero)
    grad, dtype = grad.float(), grad.dtype
    grad_x = _pass_between(grad, steps, *ends).to(dtype) if needed[0] else None
    if not needed[1]:
        return grad_x, None
    inside = _pass_between(steps - wide_zero, steps, *ends)
    distance = steps.clamp_(settings.quant_min, settings.quant_max).round_().sub_(wide_zero).sub_(inside).mul_(grad)
    return grad_x, sum_rows(distance, settings.granularity, settings.group_size)


def _from_input_and_output(
    grad: Tensor,
    x: Tensor,
    out: Tensor,
    scale: float,
    zero_point: float,
    settings: LSCSettings,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """The same for a range of Python numbers: s * d is output - x inside the range and the output outside."""
    ends = _just_outside((settings.quant_min - zero_point) * scale, (settings.quant_max - zero_point) * scale)
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


def _broadcast(x: Tensor, scale: Any, zero_point: Any, settings: LSCSettings) -> tuple[Any, Any]:
    """Scale and zero point in a shape that broadcasts against ``x``; numbers as they are."""
    if not isinstance(scale, Tensor):
        return scale, zero_point
    if settings.granularity == "tensor":
        return scale.reshape(()), zero_point.reshape(())
    shape = tuple(x.shape)
    return broadcast_qparam(scale, shape, settings.group_size), broadcast_qparam(zero_point, shape, settings.group_size)
