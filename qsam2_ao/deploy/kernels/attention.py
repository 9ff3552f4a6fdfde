"""Attention in bfloat16: any, and Hiera's inside of windows."""

from __future__ import annotations

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from ...errors import UnsupportedLayerError
from .codes import NO_GRID, CodeGrid
from .machine import OfThisMachine


def _rounding(grid: CodeGrid | None) -> tuple[torch.dtype, float, float, int]:
    """What attention is told of its result: codes of a grid, or bfloat16."""
    return (torch.bfloat16, *NO_GRID) if grid is None else (torch.uint8, *grid.arguments)


class Attention(nn.Module):
    """Scaled dot-product attention in bfloat16: ``[B, heads, N, c]`` each, values of any width d -> ``[.., N, d]``.

    Attributes:
        int8_scores: Whether queries are multiplied with keys as int8 codes, each token with a scale of its own.
        grid: The codes that come out; None for bfloat16.
    """

    int8_scores = False
    grid: CodeGrid | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend."""
        q, k, v = (t.to(torch.bfloat16) for t in (q, k, v))
        out = torch.ops.qsam2.attention(q, k, v, q.shape[-1] ** -0.5, self.int8_scores, *_rounding(self.grid))
        return out.transpose(1, 2)

    def extra_repr(self) -> str:
        """How scores are computed, and what comes out."""
        return f"int8_scores={self.int8_scores}, to {self.grid or torch.bfloat16}"


def use_int8_scores(model: SAM2Base, *, image_encoder: bool = False) -> SAM2Base:
    """Let memory attention multiply queries with keys as int8, in place: faster, and less exact.

    Each query and each key gets a scale of its own, and keys are rounded less their mean over all keys (SageAttention,
    Zhang et al. 2024). What is multiplied with the values stays bfloat16.

    Args:
        model: A model from ``load_qsam2(..., target="int8")`` or ``lower_float``.
        image_encoder: Do the same in the encoder's blocks that attend to the whole image.

    Returns:
        The model.

    Raises:
        UnsupportedLayerError: Its memory attention, or its encoder, does not run on the int8 kernels.

    Example:
        >>> predictor = use_int8_scores(lower_float(model))
    """
    parts: dict[str, nn.Module] = {"memory attention": model.memory_attention}
    if image_encoder:
        parts["the image encoder"] = model.image_encoder
    found: list[Attention | WindowAttention] = []
    for name, part in parts.items():
        own = [module for module in part.modules() if isinstance(module, Attention | WindowAttention)]
        if not own:
            raise UnsupportedLayerError(
                f'{name} is not lowered to the int8 kernels: load the file with target="int8", or call lower_float on '
                "a float model"
            )
        found += own
    for module in found:
        module.int8_scores = True
    return model


class WindowAttention(OfThisMachine):
    """Hiera's attention inside windows, on tokens that stay where they are in the image.

    What the float model computes for tokens of padding is the bias of its qkv layer, so they are never made.

    Args:
        pad: That bias, ``[3 * heads * channels]``.
        heads: Attention heads.
        window: Side of a window in tokens; None for one window, the whole image.
        stride: Side of the squares that queries are max-pooled over.

    Attributes:
        int8_scores: Whether queries are multiplied with keys as int8 codes, where the one window is the whole image.
        grid: The codes that come out; None for bfloat16.
    """

    pad: Tensor
    int8_scores = False
    grid: CodeGrid | None = None

    def __init__(self, pad: Tensor, heads: int, window: int | None, stride: int) -> None:
        super().__init__()
        self.register_buffer("pad", pad.detach().to(torch.bfloat16).contiguous())
        self.heads, self.window, self.stride = heads, window, stride

    def forward(self, qkv: Tensor) -> Tensor:
        """``[B, H, W, 3 * heads * channels]`` -> ``[B, H / stride, W / stride, heads * channels]``."""
        qkv = qkv.to(torch.bfloat16)
        if self.window is not None:
            where = self.heads, self.window, self.stride
            return torch.ops.qsam2.window_attention(qkv, self.pad, *where, *_rounding(self.grid))
        batch, height, width, _ = qkv.shape
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).flatten(1, 2).permute(2, 0, 3, 1, 4).unbind()
        if self.stride > 1:
            grid = qkv[..., : qkv.shape[-1] // 3].permute(0, 3, 1, 2)
            grid = nn.functional.max_pool2d(grid, self.stride)
            height, width = grid.shape[-2:]
            q = grid.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3).contiguous()
        out = torch.ops.qsam2.attention(q, k, v, q.shape[-1] ** -0.5, self.int8_scores, *_rounding(self.grid))
        return out.reshape(batch, height, width, -1)

    def extra_repr(self) -> str:
        """Heads, window and stride, and what comes out."""
        sizes = f"heads={self.heads}, window={self.window}, stride={self.stride}"
        return f"{sizes}, to {self.grid or torch.bfloat16}"
