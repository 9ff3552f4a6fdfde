"""Positional embeddings and encodings, kept for the last size instead of made for every image."""

from __future__ import annotations

import torch
from sam2.modeling.position_encoding import PositionEmbeddingSine
from torch import Tensor, nn

from ...graph.leaves import AxialRoPE, hiera_pos_embed
from .casts import readable
from .machine import OfThisMachine


class PositionEmbedding(OfThisMachine):
    """Hiera's positional embedding, kept for the last size of the grid: tokens ``[B, H, W, C]`` -> ``[1, H, W, C]``."""

    pos_embed: Tensor
    window_embed: Tensor

    def __init__(self, pos_embed: Tensor, window_embed: Tensor) -> None:
        super().__init__()
        self.register_buffer("pos_embed", pos_embed.detach())
        self.register_buffer("window_embed", window_embed.detach())
        self._kept: tuple[torch.Size, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The embedding for the grid of ``x``, in bfloat16."""
        kept = self._kept
        if kept is None or kept[0] != x.shape[1:3] or torch.compiler.is_compiling():
            embedding = hiera_pos_embed(self.pos_embed, self.window_embed, x)
            kept = x.shape[1:3], embedding.to(torch.bfloat16).contiguous()
            if not torch.compiler.is_compiling():
                self._kept = kept
        return kept[1]


class Rotary(nn.Module):
    """An axial rotary encoding on the kernels, which turn and round to bfloat16 in one go.

    The frequencies of one frame serve for all memories: SAM2 makes a copy for each, of complex numbers.
    """

    def __init__(self, rope: AxialRoPE) -> None:
        super().__init__()
        self.rope = rope

    def forward(self, q: Tensor, k: Tensor, num_k_exclude_rope: int = 0) -> tuple[Tensor, Tensor]:
        """Rotate ``q`` [B, heads, N, c] and ``k`` [B, heads, M, c], but for the last keys -> bfloat16."""
        q, k = readable(q), readable(k)
        turns = torch.view_as_real(self.rope.frequencies(q, k)).flatten(1)
        rotated = k.shape[-2] - num_k_exclude_rope
        return torch.ops.qsam2.rotate(q, turns, q.shape[-2]), torch.ops.qsam2.rotate(k, turns, rotated)


class SinePosition(nn.Module):
    """SAM2's sine position encoding, kept for the last size and dtype instead of made for every image.

    Features ``[B, C, H, W]`` -> ``[B, C', H, W]`` in ``dtype``; all of a batch share one memory. The first half of the
    channels tells the row alone and the second the column: SAM2 has the encoding of one column and of one row only.
    """

    def __init__(self, encoding: PositionEmbeddingSine) -> None:
        super().__init__()
        self.encoding = encoding
        self._kept: tuple[tuple[torch.Size, torch.dtype], Tensor] | None = None

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The encoding of the grid of ``x``."""
        if torch.compiler.is_compiling():
            return self.encoding(x).to(dtype)
        key, kept = (x.shape[-2:], dtype), self._kept
        if kept is None or kept[0] != key:
            down, across = (self.encoding(line).to(dtype) for line in (x[:1, :, :, :1], x[:1, :, :1]))
            half = down.shape[1] // 2
            halves = down[:, :half].expand(-1, -1, *key[0]), across[:, half:].expand(-1, -1, *key[0])
            self._kept = kept = key, torch.cat(halves, dim=1)
        return kept[1].expand(x.shape[0], -1, -1, -1)
