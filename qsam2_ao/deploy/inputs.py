"""The quantizer of a deployed layer's input, with the range that training learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, QConfigError
from ..quantizers.affine import fake_quantize_affine


class ActivationQuantizer(nn.Module):
    """Rounds its input to the learned grid and returns floats, as the trained fake-quantizer does in eval.

    The two are equal to the bit, since both compute with :mod:`qsam2_ao.quantizers.affine` in float32.

    Attributes:
        scale: Step of the grid, float32 ``[1]``; stays float32 when a model is cast to another dtype.
        zero_point: The code of zero, float32 ``[1]``; likewise.
        quant_min: Smallest code.
        quant_max: Largest code.

    Args:
        quant_min: Smallest code.
        quant_max: Largest code.
        scale: A number or a tensor with one value; the default serves modules whose state is loaded
            afterwards.
        zero_point: A number or a tensor with one value.
        device: Where to put the buffers.

    Raises:
        QConfigError: The codes are no range, a parameter is not one value, or the scale is not positive.
        NonFiniteError: The scale or zero point is NaN or infinite.

    Example:
        >>> quantizer = ActivationQuantizer(0, 3, scale=0.5, zero_point=1.0)
        >>> quantizer(torch.tensor([-1.0, 0.2, 9.0]))
        tensor([-0.5000,  0.0000,  1.0000])
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        quant_min: int,
        quant_max: int,
        scale: Tensor | float = 1.0,
        zero_point: Tensor | float = 0.0,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if quant_max <= quant_min:
            raise QConfigError(f"the codes {quant_min}..{quant_max} of an activation are not a range")
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.register_buffer("scale", _one_value("scale", scale, device))
        self.register_buffer("zero_point", _one_value("zero_point", zero_point, device))
        if self.scale.device.type != "meta" and not self.scale.item() > 0:
            raise QConfigError(f"the scale of an activation must be positive, not {self.scale.item()}")

    @property
    def bits(self) -> int:
        """Bits that a code needs."""
        return (self.quant_max - self.quant_min).bit_length()

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize.

        Args:
            x: Activations of any shape and floating dtype.

        Returns:
            Tensor of ``x``'s shape and dtype.
        """
        # As scalars, which leave the strides of x as they are: a convolution picks its kernel by them.
        scale, zero_point = self.scale.reshape(()), self.zero_point.reshape(())
        return fake_quantize_affine(x, scale, zero_point, self.quant_min, self.quant_max).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # model.bfloat16() would round the range that was trained; follow the device alone.
        exact = {"scale": self.scale, "zero_point": self.zero_point}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            cast = getattr(self, name)
            if cast.dtype != torch.float32:
                setattr(self, name, value.to(cast.device))
        return self

    def extra_repr(self) -> str:
        """The bits and the range of codes."""
        return f"bits={self.bits}, quant_min={self.quant_min}, quant_max={self.quant_max}"


def _one_value(name: str, value: Tensor | float, device: torch.device | str | None) -> Tensor:
    tensor = torch.as_tensor(value).detach().to(device=device, dtype=torch.float32, copy=True)
    if tensor.numel() != 1:
        raise QConfigError(f"the {name} of an activation is one value per tensor, not of shape {list(tensor.shape)}")
    if tensor.device.type != "meta" and not bool(tensor.isfinite().all()):
        raise NonFiniteError(f"the {name} of an activation is {tensor.item()}")
    return tensor.reshape(1)
