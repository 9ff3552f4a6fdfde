"""Rotary position encoding in real arithmetic: most runtimes have no complex numbers."""

from __future__ import annotations

from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from ..deploy.kernels.positions import Rotary
from ..graph.leaves import AxialRoPE


def use_real_rope(model: SAM2Base) -> None:
    """Put :class:`RealRoPE` for the model's image size in the place of every ``AxialRoPE``, on kernels or not."""
    tokens = (model.image_size // 16) ** 2
    for name, module in list(model.named_modules()):
        if isinstance(module, Rotary):
            model.set_submodule(name, module.rope)
    for name, module in list(model.named_modules()):
        if isinstance(module, AxialRoPE):
            model.set_submodule(name, RealRoPE(module, tokens))


class RealRoPE(nn.Module):
    """``AxialRoPE`` for one grid in real arithmetic: other runtimes have no complex numbers."""

    cos: Tensor
    sin: Tensor

    def __init__(self, rope: Any, tokens: int) -> None:
        super().__init__()
        frequencies = rope._frequencies(tokens, torch.device("cpu"))
        self.register_buffer("cos", frequencies.real.float().contiguous())
        self.register_buffer("sin", frequencies.imag.float().contiguous())

    def forward(self, q: Tensor, k: Tensor, num_k_exclude_rope: Any = 0) -> tuple[Tensor, Tensor]:
        """Rotate ``q`` [B, heads, N, c] and all of ``k`` [B, heads, M, c] but its last tokens, N at a time."""
        if isinstance(num_k_exclude_rope, int) and num_k_exclude_rope == 0:
            return self._rotate(q), self._rotate(k)
        rotated = k.shape[2] - num_k_exclude_rope
        return self._rotate(q), torch.cat([self._rotate(k[:, :, :rotated]), k[:, :, rotated:]], dim=2)

    def _rotate(self, x: Tensor) -> Tensor:
        frames = x.reshape(x.shape[0], x.shape[1], -1, *self.cos.shape, 2)
        real, imaginary = frames.unbind(-1)
        turned = [real * self.cos - imaginary * self.sin, real * self.sin + imaginary * self.cos]
        return torch.stack(turned, dim=-1).reshape(x.shape)
