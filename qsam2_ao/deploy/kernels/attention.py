"""Attention in bfloat16: any, and Hiera's inside of windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .machine import OfThisMachine


class Attention(nn.Module):
    """Scaled dot-product attention in bfloat16: ``[B, heads, N, c]`` each, values of any width d -> ``[.., N, d]``."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend."""
        q, k, v = (t.to(torch.bfloat16) for t in (q, k, v))
        return torch.ops.qsam2.attention(q, k, v, q.shape[-1] ** -0.5).transpose(1, 2)


class WindowAttention(OfThisMachine):
    """Hiera's attention inside windows, on tokens that stay where they are in the image.

    What the float model computes for tokens of padding is the bias of its qkv layer, so they are never made.

    Args:
        pad: That bias, ``[3 * heads * channels]``.
        heads: Attention heads.
        window: Side of a window in tokens; None for one window, the whole image.
        stride: Side of the squares that queries are max-pooled over.
    """

    pad: Tensor

    def __init__(self, pad: Tensor, heads: int, window: int | None, stride: int) -> None:
        super().__init__()
        self.register_buffer("pad", pad.detach().to(torch.bfloat16).contiguous())
        self.heads, self.window, self.stride = heads, window, stride

    def forward(self, qkv: Tensor) -> Tensor:
        """``[B, H, W, 3 * heads * channels]`` -> ``[B, H / stride, W / stride, heads * channels]``."""
        qkv = qkv.to(torch.bfloat16)
        if self.window is not None:
            return torch.ops.qsam2.window_attention(qkv, self.pad, self.heads, self.window, self.stride)
        batch, height, width, _ = qkv.shape
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).flatten(1, 2).permute(2, 0, 3, 1, 4).unbind()
        if self.stride > 1:
            grid = qkv[..., : qkv.shape[-1] // 3].permute(0, 3, 1, 2)
            grid = nn.functional.max_pool2d(grid, self.stride)
            height, width = grid.shape[-2:]
            q = grid.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3).contiguous()
        out = torch.ops.qsam2.attention(q, k, v, q.shape[-1] ** -0.5)
        return out.reshape(batch, height, width, -1)

    def extra_repr(self) -> str:
        """Heads, window and stride."""
        return f"heads={self.heads}, window={self.window}, stride={self.stride}"
