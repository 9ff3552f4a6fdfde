"""LSQ (arXiv 1902.08153) and LSQ+ (arXiv 2004.09576) on torch.ao's learnable fake-quantize operators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..grids import RangeStats, activation_grid
from ..mse import search_alpha
from .base import SMALLEST_SCALE, RivalFakeQuantize, affine_from_range


class LSQFakeQuantize(RivalFakeQuantize):
    """Learned step size: the scale is a parameter, with a gradient scaled by 1 / sqrt(N * quant_max).

    The operators are those of torch.ao's ``_LearnableFakeQuantize``. Weights: signed symmetric, scale per output
    channel started at 2 mean|w| / sqrt(quant_max) (LSQ), or max(|mean - 3 std|, |mean + 3 std|) / 2^(bits - 1) (LSQ+).
    Activations: LSQ learns the scale, started at 2 mean|x| / sqrt(quant_max); SAM2's inputs are signed, so the zero
    point stays where the extremes of the calibration data put it. LSQ+ learns both, started at the range of least
    squared error.

    Args:
        bits: 2 to 8 for weights, 4 to 8 for activations.
        is_weight: Quantizer of a weight, or of an activation.
        plus: LSQ+ instead of LSQ.
        factory_kwargs: As torch.ao passes it.
    """

    sized: ClassVar[tuple[str, ...]] = ("scale", "zero_point")
    ranges: ClassVar[tuple[str, ...]] = ("scale", "zero_point")

    def __init__(
        self,
        bits: int,
        *,
        is_weight: bool = False,
        plus: bool = False,
        factory_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(bits, is_weight=is_weight, factory_kwargs=factory_kwargs)
        self.plus = plus
        self.scale = nn.Parameter(self._empty())
        self.zero_point = nn.Parameter(torch.zeros_like(self._empty()), requires_grad=plus and not is_weight)

    def start_weight(self, rows: Tensor) -> dict[str, Tensor]:
        """Scale [out] and zero points."""
        if self.plus:
            std, mean = torch.std_mean(rows, dim=1, correction=0)
            scale = torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / 2 ** (self.bits - 1)
        else:
            scale = 2 * rows.abs().mean(1) / math.sqrt(self.quant_max)
        return {"scale": scale.clamp_min(SMALLEST_SCALE), "zero_point": torch.zeros_like(scale)}

    def start_activation(self, stats: RangeStats, sample: Tensor) -> dict[str, Tensor]:
        """Scale and zero point [1]."""
        if self.plus:
            grid = activation_grid(self.bits)
            scale, zero_point, _, _ = grid.clip_range(stats, search_alpha(sample, stats, grid))
            return {"scale": scale, "zero_point": zero_point}
        _, zero_point = affine_from_range(stats.low, stats.high, self.quant_max)
        scale = 2 * sample.abs().mean() / math.sqrt(self.quant_max)
        return {"scale": scale.clamp_min(SMALLEST_SCALE), "zero_point": zero_point}

    def fake_quantize(self, x: Tensor) -> Tensor:
        """As torch.ao's ``_LearnableFakeQuantize`` does, with LSQ's count of the elements that share a scale."""
        if self.training:
            self.scale.data.clamp_(min=SMALLEST_SCALE)
        scale = self.scale if self.training else self.scale.clamp_min(SMALLEST_SCALE)  # the last step came after
        factor = 1 / math.sqrt(x.numel() / scale.numel() * self.quant_max)
        if self.is_weight:
            return torch._fake_quantize_learnable_per_channel_affine(
                x, scale, self.zero_point, 0, self.quant_min, self.quant_max, factor
            )
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, scale, self.zero_point, self.quant_min, self.quant_max, factor
        )

    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Scale and integer zero point of the forward pass, float32, [out] or [1]."""
        zero_point = self.zero_point.detach().round().clamp(self.quant_min, self.quant_max)
        return self.scale.detach().clamp_min(SMALLEST_SCALE), zero_point
