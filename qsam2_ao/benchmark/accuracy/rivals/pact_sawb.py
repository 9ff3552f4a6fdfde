"""PACT (arXiv 1805.06085) for activations and SAWB (arXiv 1807.06964) for weights.

SAWB's coefficients and rules, and the two-sided form of PACT for signed inputs, are those that IBM's
fms-model-optimizer uses (``SAWBPlusSTE`` on every output channel, ``PACT2`` with ``align_zero``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ....quantizers.alpha_search import search_alpha
from ....quantizers.grids import RangeStats, activation_grid
from .base import SMALLEST_SCALE, RivalFakeQuantize, affine_from_range, straight_through

# clip = c1 * sqrt(E[w^2]) + c2 * E|w|, fitted by the paper to six distributions; none are given for 6 and 7 bits.
_COEFFICIENTS = {
    2: (3.12, -2.064),
    3: (7.509, -6.892),
    4: (12.68, -12.80),
    5: (17.74, -18.64),
}


class SAWBFakeQuantize(RivalFakeQuantize):
    """Statistics-aware weight binning: a clip that follows the weight, nothing learned, straight-through gradients.

    Per output channel, on 2^bits levels that are symmetric about zero, so that 2 bits have -a, -a/3, a/3, a. From 6
    bits on the clip is the largest magnitude. In training the clip follows the weight; in eval it stays.

    Args:
        bits: 2 to 8.
        name: Of the layer, for error messages.
        factory_kwargs: As torch.ao passes it.
    """

    clip: Tensor

    def __init__(self, bits: int, *, name: str = "", factory_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__(bits, is_weight=True, name=name, factory_kwargs=factory_kwargs)
        self.quant_min, self.quant_max = 0, 2**bits - 1
        self.register_buffer("clip", self._empty())

    def start_weight(self, rows: Tensor) -> dict[str, Tensor]:
        """The clip [out]."""
        largest = rows.abs().amax(1)
        if self.bits not in _COEFFICIENTS:
            return {"clip": largest.clamp_min(SMALLEST_SCALE)}
        c1, c2 = _COEFFICIENTS[self.bits]
        clip = c1 * rows.square().mean(1).sqrt() + c2 * rows.abs().mean(1)
        # The fit turns negative for a row of nearly equal magnitudes; such a row needs no more than its largest.
        return {"clip": torch.where(clip > 0, clip, largest).clamp_min(SMALLEST_SCALE)}

    def start_activation(self, stats: RangeStats, sample: Tensor) -> dict[str, Tensor]:
        """SAWB is for weights."""
        raise AssertionError("SAWB quantizes weights only")

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Clip by the weight's statistics, and round; the gradient passes unchanged."""
        with torch.no_grad():
            self.clip.copy_(self.start_weight(x.reshape(x.shape[0], -1))["clip"])
        return straight_through(x, self.on_grid(x)[0])

    def passes(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """All of it, as SAWB does not cut gradients at the clip."""
        return x

    @torch.no_grad()
    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Scale and (half-integer) zero point of the symmetric levels, [out]."""
        scale = 2 * self.clip / self.quant_max
        return scale, torch.full_like(scale, self.quant_max / 2)


class PACTFakeQuantize(RivalFakeQuantize):
    """Two-sided parameterized clipping activation: both clips are learned from the values that they clip.

    They start at the range of least squared error, where the paper starts from a constant. The paper's L2 penalty on
    the clips is the optimizer's weight decay on them, and off by default, as for all ranges. The grid is widened to
    hold zero and its zero point is an integer.

    Args:
        bits: 2 to 8.
        name: Of the layer, for error messages.
        factory_kwargs: As torch.ao passes it.
    """

    def __init__(self, bits: int, *, name: str = "", factory_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__(bits, is_weight=False, name=name, factory_kwargs=factory_kwargs)
        self.clip_low = nn.Parameter(-self._empty())
        self.clip_high = nn.Parameter(self._empty())

    def start_weight(self, rows: Tensor) -> dict[str, Tensor]:
        """PACT is for activations."""
        raise AssertionError("PACT quantizes activations only")

    def start_activation(self, stats: RangeStats, sample: Tensor) -> dict[str, Tensor]:
        """The clips of least squared error, [1] each."""
        grid = activation_grid(self.bits)
        scale, zero_point = grid.clip_range(stats, search_alpha(sample, stats, grid))[:2]
        return {"clip_low": -zero_point * scale, "clip_high": (self.quant_max - zero_point) * scale}

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Clip, then round; clips get the gradient of what they clip, values that of what is inside."""
        self.clip_low.data.clamp_(max=0)  # the grid holds zero, so a clip beyond it would clip nothing
        self.clip_high.data.clamp_(min=0)
        # A value on a clip belongs to the clip: most inputs behind a ReLU are exactly zero, and so may their clip be.
        clipped = torch.where(x >= self.clip_high, self.clip_high, torch.where(x <= self.clip_low, self.clip_low, x))
        return straight_through(clipped, self.on_grid(x)[0])

    @torch.no_grad()
    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Scale and integer zero point of the range between the clips, [1]."""
        return affine_from_range(self.clip_low, self.clip_high, self.quant_max)
