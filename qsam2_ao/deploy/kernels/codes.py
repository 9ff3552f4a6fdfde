"""The codes that layers take and give, and the rounding of floats to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..inputs import ActivationQuantizer
from .casts import readable


@dataclass(frozen=True)
class CodeGrid:
    """The unsigned codes of an activation: ``x = (code - zero_point) * scale``, codes from 0 to ``high``."""

    scale: float
    zero_point: float
    high: int

    @classmethod
    def of(cls, quantizer: ActivationQuantizer) -> CodeGrid:
        """The grid of a deployed quantizer, its codes moved to start from 0.

        Where they had to be moved, the sum that is rounded has other last bits: an input within some 2^-17
        of a step from the middle between two codes may get the other one.
        """
        zero_point = float(quantizer.zero_point) - quantizer.quant_min
        return cls(float(quantizer.scale), zero_point, quantizer.quant_max - quantizer.quant_min)

    @property
    def arguments(self) -> tuple[float, float, int]:
        """As the kernels take it."""
        return self.scale, self.zero_point, self.high


NO_GRID = (1.0, 0.0, 255)
"""What the kernels take for a grid where they give no codes."""


class QuantizeCodes(nn.Module):
    """Rounds its input to codes: float tensor of any shape -> uint8, equal to the bit to the fake-quantizer's.

    That is, to one's whose codes start from 0, as LSC's do; see :meth:`CodeGrid.of`.
    """

    def __init__(self, grid: CodeGrid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """The codes of ``x``."""
        return torch.ops.qsam2.quantize(readable(x), *self.grid.arguments)

    def extra_repr(self) -> str:
        """The grid."""
        return str(self.grid)
