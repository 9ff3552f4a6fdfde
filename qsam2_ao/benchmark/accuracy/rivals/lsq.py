"""LSQ (arXiv 1902.08153) and LSQ+ (arXiv 2004.09576) on torch.ao's learnable fake-quantize operators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ....quantizers.alpha_search import search_alpha
from ....quantizers.grids import RangeStats, activation_grid
from .base import SMALLEST_SCALE, RivalFakeQuantize, affine_from_range, straight_through


class LSQFakeQuantize(RivalFakeQuantize):
    """Learned step size: the scale is a parameter, with a gradient scaled by 1 / sqrt(N * quant_max).

    The operators are those of torch.ao's ``_LearnableFakeQuantize``. Its module is sized before the weight is known,
    starts from an observer, and counts the whole tensor as N, where LSQ counts the elements that share a scale.

    Weights: signed symmetric, scale per output channel started at 2 mean|w| / sqrt(quant_max) (LSQ), or
    max(|mean - 3 std|, |mean + 3 std|) / 2^(bits - 1) (LSQ+).

    Activations: LSQ learns the scale, started at 2 mean|x| / sqrt(quant_max). It is made for inputs that are never
    negative; SAM2's are signed, so the grid gets a zero point, fixed where the extremes of the calibration data put it.
    LSQ+ learns scale and offset, x_hat = scale * code + offset, both started at the range of least squared error. The
    offset is in the units of the activation, as in the paper, so that an optimizer's step means the same to both; the
    operator's zero point -offset / scale is rounded straight-through, so that integer kernels can compute with it.

    Args:
        bits: 2 to 8.
        is_weight: Quantizer of a weight, or of an activation.
        plus: LSQ+ instead of LSQ.
        name: Of the layer, for error messages.
        factory_kwargs: As torch.ao passes it.
    """

    zero_point: Tensor

    def __init__(
        self,
        bits: int,
        *,
        is_weight: bool = False,
        plus: bool = False,
        name: str = "",
        factory_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(bits, is_weight=is_weight, name=name, factory_kwargs=factory_kwargs)
        self.plus = plus
        self.scale = nn.Parameter(self._empty())
        if plus and not is_weight:
            self.offset = nn.Parameter(torch.zeros(1, device=self.device))
        else:
            self.register_buffer("zero_point", torch.zeros_like(self._empty()))

    def start_weight(self, rows: Tensor) -> dict[str, Tensor]:
        """Scale [out] and zero points."""
        if self.plus:
            std, mean = torch.std_mean(rows, dim=1, correction=0)
            scale = torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / 2 ** (self.bits - 1)
        else:
            scale = 2 * rows.abs().mean(1) / math.sqrt(self.quant_max)
        return {"scale": scale.clamp_min(SMALLEST_SCALE), "zero_point": torch.zeros_like(scale)}

    def start_activation(self, stats: RangeStats, sample: Tensor) -> dict[str, Tensor]:
        """Scale and zero point or offset, [1] each."""
        if self.plus:
            grid = activation_grid(self.bits)
            scale, zero_point = grid.clip_range(stats, search_alpha(sample, stats, grid))[:2]
            return {"scale": scale, "offset": -zero_point * scale}
        _, zero_point = affine_from_range(stats.low, stats.high, self.quant_max)
        scale = 2 * sample.abs().mean() / math.sqrt(self.quant_max)
        return {"scale": scale.clamp_min(SMALLEST_SCALE), "zero_point": zero_point}

    def fake_quantize(self, x: Tensor) -> Tensor:
        """As torch.ao's ``_LearnableFakeQuantize`` does, with LSQ's count of the elements that share a scale."""
        self.scale.data.clamp_(min=SMALLEST_SCALE)
        factor = 1 / math.sqrt(x.numel() / self.scale.numel() * self.quant_max)
        if self.is_weight:
            return torch._fake_quantize_learnable_per_channel_affine(
                x, self.scale, self.zero_point, 0, self.quant_min, self.quant_max, factor
            )
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, self.scale, self._grid_zero(), self.quant_min, self.quant_max, factor
        )

    def _grid_zero(self) -> Tensor:
        """Code of zero, an integer; LSQ+'s with a gradient to scale and offset."""
        if self.is_weight or not self.plus:
            return self.zero_point
        zero_point = -self.offset / self.scale.clamp_min(SMALLEST_SCALE)
        return straight_through(zero_point, zero_point.round().clamp(self.quant_min, self.quant_max))

    @torch.no_grad()
    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Scale and integer zero point, float32, [out] or [1]."""
        return self.scale.clamp_min(SMALLEST_SCALE), self._grid_zero()
