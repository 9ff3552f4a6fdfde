"""Layer normalization, with the rounding to codes behind it."""

from __future__ import annotations

import torch
from sam2.modeling.sam2_utils import LayerNorm2d
from torch import Tensor, nn

from .casts import readable
from .codes import NO_GRID, CodeGrid
from .machine import OfThisMachine


class Norm(OfThisMachine):
    """Layer normalization of ``[..., channels]`` to bfloat16, or to the codes of ``grid``."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm | LayerNorm2d, grid: CodeGrid | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", norm.weight.detach().float())
        self.register_buffer("bias", norm.bias.detach().float())
        self.eps = norm.eps
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``."""
        dtype, grid = (torch.uint8, self.grid.arguments) if self.grid else (torch.bfloat16, NO_GRID)
        return torch.ops.qsam2.layer_norm(readable(x), self.weight, self.bias, self.eps, dtype, *grid)

    def extra_repr(self) -> str:
        """What comes out."""
        return f"{self.weight.numel()}, to {self.grid or 'bfloat16'}"
