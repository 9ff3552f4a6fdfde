"""PACT (arXiv 1805.06085) for activations and SAWB (arXiv 1807.06964) for weights.

The coefficients, and the two-sided form of PACT for signed inputs, are those that IBM's fms-model-optimizer uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..grids import RangeStats, activation_grid
from ..mse import search_alpha
from .base import SMALLEST_SCALE, RivalFakeQuantize, affine_from_range, straight_through

# clip = c1 * sqrt(E[w^2]) + c2 * E|w|, fitted by the papers to six distributions; 6 and 7 bits lie between.
_COEFFICIENTS = {
    2: (3.12, -2.064),
    3: (7.509, -6.892),
    4: (12.68, -12.80),
    5: (17.74, -18.64),
    8: (31.76, -35.04),
}


class SAWBFakeQuantize(RivalFakeQuantize):
    """Statistics-aware weight binning: a clip that follows the weight, nothing learned, straight-through gradients.

    Per output channel, on 2^bits levels that are symmetric about zero (so that 2 bits have -a, -a/3, a/3, a), as
    SAWB+ of fms-model-optimizer; from 6 bits on the clip is the largest magnitude, as there.
    """

    sized: ClassVar[tuple[str, ...]] = ("clip",)
    ranges: ClassVar[tuple[str, ...]] = ()
    clip: Tensor

    def __init__(self, bits: int, *, factory_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__(bits, is_weight=True, factory_kwargs=factory_kwargs)
        self.quant_min, self.quant_max = 0, 2**bits - 1
        self.register_buffer("clip", self._empty())

    def start_weight(self, rows: Tensor) -> dict[str, Tensor]:
        """The clip [out]."""
        if self.bits in (6, 7, 8):
            clip = rows.abs().amax(1)
        else:
            c1, c2 = _COEFFICIENTS[self.bits]
            clip = c1 * rows.square().mean(1).sqrt() + c2 * rows.abs().mean(1)
            # The fit can turn negative for a row of equal magnitudes; such a row needs no more than its largest.
            clip = torch.where(clip > 0, clip, rows.abs().amax(1))
        return {"clip": clip.clamp_min(SMALLEST_SCALE)}

    def start_activation(self, stats: RangeStats, sample: Tensor) -> dict[str, Tensor]:
        """SAWB is for weights."""
        raise AssertionError("SAWB quantizes weights only")

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Round in the clip range; the gradient passes unchanged."""
        if self.training and self.observer_enabled:
            with torch.no_grad():
                self.clip.copy_(self.start_weight(x.reshape(x.shape[0], -1))["clip"])
        scale, zero_point = (t.reshape(-1, *[1] * (x.dim() - 1)) for t in self.calculate_qparams())
        with torch.no_grad():
            codes = torch.round(x / scale + zero_point).clamp(self.quant_min, self.quant_max)
            values = (codes - zero_point) * scale
        return straight_through(x, values)

    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Scale and (half-integer) zero point of the symmetric levels, [out]."""
        scale = 2 * self.clip / self.quant_max
        return scale, torch.full_like(scale, self.quant_max / 2)


class PACTFakeQuantize(RivalFakeQuantize):
    """Two-sided parameterized clipping activation: both clips are learned from the values that they clip."""

    sized: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high")
    ranges: ClassVar[tuple[str, ...]] = ("clip_low", "clip_high")

    def __init__(self, bits: int, *, factory_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__(bits, is_weight=False, factory_kwargs=factory_kwargs)
        self.clip_low = nn.Parameter(-self._empty())
        self.clip_high = nn.Parameter(self._empty())

    def start_weight(self, rows: Tensor) -> dict[str, Tensor]:
        """PACT is for activations."""
        raise AssertionError("PACT quantizes activations only")

    def start_activation(self, stats: RangeStats, sample: Tensor) -> dict[str, Tensor]:
        """The clips of least squared error, [1] each."""
        grid = activation_grid(self.bits)
        scale, zero_point, _, _ = grid.clip_range(stats, search_alpha(sample, stats, grid))
        return {"clip_low": -zero_point * scale, "clip_high": (self.quant_max - zero_point) * scale}

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Clip, then round; clips get the gradient of what they clip, values that of what is inside."""
        clipped = torch.minimum(torch.maximum(x, self.clip_low), self.clip_high)
        scale, zero_point = self.calculate_qparams()
        with torch.no_grad():
            codes = (torch.round(x / scale) + zero_point).clamp(self.quant_min, self.quant_max)
            values = (codes - zero_point) * scale
        return straight_through(clipped, values)

    @torch.no_grad()
    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Scale and integer zero point of the range between the clips, [1]."""
        return affine_from_range(self.clip_low, self.clip_high, self.quant_max)
