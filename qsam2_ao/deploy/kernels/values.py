"""Attention to what the values are made of, instead of to the values.

Weights of attention sum to one, so that ``P (M W^T + b)`` is ``(P M) W^T + b``. Memory attention has one head and makes
values of 256 channels out of memories of 64: to attend first takes a quarter of that product, and projects as many rows
as there are queries instead of as many as there are keys. A rounded input is attended to as its codes, which bfloat16
holds exactly, and the sums are not rounded to them again: means of many memories would fall between few of the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ...native import code_offset, fast_float
from ..packed import PackedIntxTensor
from .codes import CodeGrid
from .hiera_block import back, leads_to, only_user
from .linear import weight_centre
from .machine import OfThisMachine


class CodeValues(nn.Module):
    """Codes -> what they stand for in steps of their grid, in bfloat16: integers of up to 8 bits and a sign."""

    def __init__(self, grid: CodeGrid) -> None:
        super().__init__()
        self.zero_point = grid.zero_point

    def forward(self, codes: Tensor) -> Tensor:
        """Take the zero point off."""
        return codes.to(torch.bfloat16) - (self.zero_point - code_offset(codes.device))

    def extra_repr(self) -> str:
        """The zero point."""
        return f"zero_point={self.zero_point}"


class ValueProjection(OfThisMachine):
    """A packed linear layer on sums of codes: ``[..., in]`` in steps of the input's grid -> ``[..., out]``, float32.

    Attributes:
        weight: The codes less their zero point, exact ``[out, in]``.
        alpha: Step of a product, float32 ``[out]``: the input's scale times the weight's.
        beta: Bias, float32 ``[out]``.
        activation: "none", as other layers on int8 have one.
        input_grid: The codes that come in.
    """

    weight: Tensor
    alpha: Tensor
    beta: Tensor
    activation = "none"

    def __init__(self, layer: nn.Linear, packed: PackedIntxTensor, grid: CodeGrid) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.input_grid = grid
        codes = packed.unpack().float() - weight_centre(packed)[0]
        self.register_buffer("weight", codes.to(fast_float(codes.device)))
        self.register_buffer("alpha", packed.scale.float().expand(self.out_features) * grid.scale)
        bias = layer.bias
        self.register_buffer("beta", self.alpha * 0 if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """Project."""
        # Sums of codes leave float16, which a caller's autocast may ask for.
        with torch.autocast(x.device.type, enabled=False):
            return torch.addcmul(self.beta, F.linear(x.to(self.weight.dtype), self.weight), self.alpha)

    def extra_repr(self) -> str:
        """Size."""
        return f"{self.in_features}, {self.out_features}"


@dataclass(frozen=True)
class Values:
    """The nodes of values that are wider than what they are made of, and of what becomes of them."""

    layer: fx.Node
    merged: fx.Node  # the attended values as tokens


def wide_values(sdpa: fx.Node, module: Callable[[Any], nn.Module | None]) -> Values | None:
    """Follow the values of an attention back to their layer; None if there is nothing to gain, or to be sure of.

    Args:
        sdpa: A call of attention with queries, keys and values.
        module: Node -> the module that it calls, or None.

    Returns:
        The nodes where a linear layer that widens its input makes the values of a single head, and nothing else.
    """
    heads = back(sdpa.args[2], "transpose", (1, 2)) if len(sdpa.args) == 3 else None
    node = back(heads, "reshape")
    if heads is None or node is None or len(heads.args) != 5 or heads.args[3] != 1:
        return None
    layer = module(node)
    if type(layer) is not nn.Linear or layer.in_features >= layer.out_features or not leads_to(node, heads):
        return None
    attended = [user for user in sdpa.users if back(user, "transpose", (1, 2)) is sdpa]
    merged = only_user(attended[0]) if len(attended) == 1 else None
    if merged is None or merged.target != "reshape" or len(merged.args) != 4 or not leads_to(sdpa, merged):
        return None
    return Values(node, merged)
