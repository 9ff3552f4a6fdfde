"""torchao's quantization-aware training with learned ranges (``IntxFakeQuantizer``), inside torch.ao's interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.granularity import PerAxis, PerToken
from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

from ....quantizers.grids import RangeStats
from .base import SMALLEST_SCALE, RivalFakeQuantize, straight_through

_SIGNED = {bits: getattr(torch, f"int{bits}") for bits in range(2, 9)}


class TorchAOFakeQuantize(RivalFakeQuantize):
    """torchao's own quantizer and arithmetic: minimum and maximum as start, scale (and zero point) learned.

    Weights: symmetric, per output channel, convolutions as matrices of their output channels. Activations: torchao
    learns ranges of tokens; the whole tensor is handed to it as one token, which makes one asymmetric range per tensor.
    Its zero point is learned as a float; here it is rounded straight-through, so that integer kernels can compute with
    it.

    Args:
        bits: 2 to 8.
        is_weight: Quantizer of a weight, or of an activation.
        name: Of the layer, for error messages.
        factory_kwargs: As torch.ao passes it.
    """

    zero_point: Tensor

    def __init__(
        self, bits: int, *, is_weight: bool = False, name: str = "", factory_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(bits, is_weight=is_weight, name=name, factory_kwargs=factory_kwargs)
        self.quant_min, self.quant_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.scale = nn.Parameter(self._empty())
        zero_point = torch.zeros_like(self._empty())
        if is_weight:
            self.register_buffer("zero_point", zero_point)
        else:
            self.zero_point = nn.Parameter(zero_point)

    def _quantizer(self) -> IntxFakeQuantizer:
        config = IntxFakeQuantizeConfig(
            _SIGNED[self.bits],
            PerAxis(0) if self.is_weight else PerToken(),
            is_symmetric=self.is_weight,
            is_dynamic=False,
            range_learning=True,
            zero_point_precision=torch.float32,
        )
        quantizer = IntxFakeQuantizer(config)
        quantizer._initialized = True  # what torchao's initialize_fake_quantizers sets
        return quantizer

    def _started(self, x: Tensor) -> dict[str, Tensor]:
        quantizer = self._quantizer()
        quantizer(x)
        return {"scale": quantizer.scale.detach(), "zero_point": quantizer.zero_point.detach()}

    def start_weight(self, rows: Tensor) -> dict[str, Tensor]:
        """torchao's scale [out] and zero points."""
        return self._started(rows)

    def start_activation(self, stats: RangeStats, sample: Tensor) -> dict[str, Tensor]:
        """torchao's scale and zero point [1] for the extremes of the data."""
        return self._started(torch.cat([stats.low, stats.high]).reshape(1, -1))

    def fake_quantize(self, x: Tensor) -> Tensor:
        """torchao's fake quantization with this module's scale and zero point."""
        self.scale.data.clamp_(min=SMALLEST_SCALE)
        quantizer = self._quantizer()
        quantizer.scale, quantizer.zero_point = self.scale.reshape(-1, 1), self._grid_zero().reshape(-1, 1)
        rows = x.reshape(x.shape[0], -1) if self.is_weight else x.reshape(1, -1)
        return quantizer(rows).reshape(x.shape)

    def _grid_zero(self) -> Tensor:
        """Code of zero, an integer as torchao's start is one too; with a gradient to what is learned."""
        return straight_through(self.zero_point, self.zero_point.round().clamp(self.quant_min, self.quant_max))

    @torch.no_grad()
    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Scale and integer zero point, [out] or [1]."""
        return self.scale.clamp_min(SMALLEST_SCALE), self._grid_zero()
