"""Parameter-free modules and functions that stay one node in a SAM2 graph.

Each holds what a symbolic trace cannot see: control flow on shapes, on ``self.training``, or on whether an
argument is a list. They compute exactly what the code they stand for in the ``sam2`` package computes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from sam2.modeling.position_encoding import compute_axial_cis
from sam2.modeling.sam.transformer import Attention, RoPEAttention, apply_rotary_enc
from torch import Tensor, nn


class ScaledDotProductAttention(nn.Module):
    """Scaled dot-product attention whose dropout follows ``self.training``.

    Args:
        dropout_p: Dropout probability in training mode.

    Example:
        >>> attention = ScaledDotProductAttention(0.1).eval()
        >>> q, k, v = torch.randn(3, 1, 2, 16, 8)  # [batch, heads, tokens, channels] each
        >>> attention(q, k, v).shape
        torch.Size([1, 2, 16, 8])
    """

    def __init__(self, dropout_p: float) -> None:
        super().__init__()
        self.dropout_p = dropout_p

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend; ``q`` [B, heads, N, c], ``k`` and ``v`` [B, heads, M, c] -> [B, heads, N, c]."""
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout_p if self.training else 0.0)

    @classmethod
    def of(cls, attention: Attention) -> ScaledDotProductAttention:
        """The attention of a SAM2 ``Attention`` module, in the same mode."""
        return cls(attention.dropout_p).train(attention.training)


class AxialRoPE(nn.Module):
    """Axial rotary position encoding of queries and keys, for any square grid and any number of memories.

    Holds the frequencies of the last grid size seen, as SAM2's ``RoPEAttention`` does; they are no part of
    the state dict. The last ``num_k_exclude_rope`` keys (object pointers) are passed through.
    """

    def __init__(self, dim: int, theta: float, k_repeat: bool, freqs_cis: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.theta = theta
        self.k_repeat = k_repeat
        self.freqs_cis = freqs_cis

    def forward(self, q: Tensor, k: Tensor, num_k_exclude_rope: int = 0) -> tuple[Tensor, Tensor]:
        """Rotate ``q`` [B, heads, N, c] and ``k`` [B, heads, M, c]; N must be a square number."""
        freqs_cis = self.frequencies(q, k)
        rotated = k.shape[-2] - num_k_exclude_rope
        q, k_rotated = apply_rotary_enc(q, k[:, :, :rotated], freqs_cis=freqs_cis, repeat_freqs_k=self.k_repeat)
        return q, torch.cat([k_rotated, k[:, :, rotated:]], dim=2) if num_k_exclude_rope else k_rotated

    def frequencies(self, q: Tensor, k: Tensor) -> Tensor:
        """What the channels of queries are multiplied by, pair by pair: complex64 [N, c / 2]."""
        tokens = q.shape[-2]
        if tokens != k.shape[-2] and not self.k_repeat:
            raise ValueError(
                f"rotary attention got {tokens} queries and {k.shape[-2]} keys, but was built without rope_k_repeat"
            )
        return self._frequencies(tokens, q.device)

    def _frequencies(self, tokens: int, device: torch.device) -> Tensor:
        freqs_cis = self.freqs_cis  # another thread may replace it at any time by those of another size
        if freqs_cis.shape[0] != tokens:
            side = math.sqrt(tokens)
            freqs_cis = compute_axial_cis(dim=self.dim, end_x=side, end_y=side, theta=self.theta)
        self.freqs_cis = freqs_cis = freqs_cis.to(device)
        return freqs_cis

    @classmethod
    def of(cls, attention: RoPEAttention) -> AxialRoPE:
        """The rotary encoding of a SAM2 ``RoPEAttention`` module."""
        settings = attention.compute_cis.keywords
        return cls(settings["dim"], settings["theta"], attention.rope_k_repeat, attention.freqs_cis)


def hiera_pos_embed(pos_embed: Tensor, window_embed: Tensor, x: Tensor) -> Tensor:
    """Hiera's positional embedding for tokens ``x`` [B, H, W, C] -> [1, H, W, C].

    ``pos_embed`` [1, C, h, w] is resized to the grid and ``window_embed`` [1, C, k, k] tiled over it
    (``Hiera._get_pos_embed``).
    """
    resized = F.interpolate(pos_embed, size=(x.shape[1], x.shape[2]), mode="bicubic")
    tiled = window_embed.tile([a // b for a, b in zip(resized.shape, window_embed.shape, strict=True)])
    return (resized + tiled).permute(0, 2, 3, 1)


def only_level(features: Tensor | list[Tensor]) -> Tensor:
    """The one feature level of memory attention, which ``SAM2Base`` passes as a list of one tensor."""
    if isinstance(features, list):
        if len(features) != 1:
            raise ValueError(f"memory attention takes one feature level, got {len(features)}")
        return features[0]
    return features


def mask_probabilities(masks: Tensor, skip_sigmoid: bool) -> Tensor:
    """``masks`` as they are when they are probabilities already, else their sigmoid."""
    return masks if skip_sigmoid else F.sigmoid(masks)
