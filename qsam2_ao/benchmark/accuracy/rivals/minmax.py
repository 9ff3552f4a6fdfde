"""torch.ao's own quantization-aware training: ranges are moving averages of minimum and maximum."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver

from ....quantizers.base import from_weight_alone, named, no_range, non_finite_start
from ....quantizers.grids import check_bit_width
from .base import deployed_values, describe, straight_through


class MinMaxFakeQuantize(FakeQuantize):
    """torch.ao's ``FakeQuantize`` with the observers of its default QAT ``QConfig``, at any bits.

    Weights: signed symmetric per output channel. Activations: unsigned affine per tensor. Training is torch.ao's own.
    In eval mode torch.ao would go on observing; here nothing is learned, and the values are those of the deployed
    model to the bit.

    Args:
        bits: 2 to 8.
        is_weight: Quantizer of a weight, or of an activation.
        name: Of the layer, for error messages.
        factory_kwargs: As torch.ao passes it.

    Raises:
        QConfigError: Bits out of range.
    """

    def __init__(
        self, bits: int, *, is_weight: bool = False, name: str = "", factory_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        check_bit_width(bits, is_weight)
        quant_min = -(2 ** (bits - 1)) if is_weight else 0
        settings: dict[str, Any] = {"quant_min": quant_min, "quant_max": quant_min + 2**bits - 1}
        if factory_kwargs:
            settings["factory_kwargs"] = factory_kwargs
        if is_weight:
            settings |= {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric, "ch_axis": 0}
            super().__init__(MovingAveragePerChannelMinMaxObserver, **settings)
        else:
            settings |= {"dtype": torch.quint8, "qscheme": torch.per_tensor_affine}
            super().__init__(MovingAverageMinMaxObserver, **settings)
        self.bits, self.is_weight, self.name = bits, is_weight, name
        self._collecting: MovingAverageMinMaxObserver | MovingAveragePerChannelMinMaxObserver | None = None

    @property
    def who(self) -> str:
        """What error messages call this quantizer."""
        return named(describe(self, self.is_weight), self.name)

    @property
    def is_initialized(self) -> bool:
        """Whether it has observed anything."""
        low = self.activation_post_process.min_val
        return low.numel() > 0 and bool(torch.isfinite(low).all())

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Start the range from a weight or a batch of an activation.

        Raises:
            NonFiniteError: ``x`` holds NaN or infinity.
        """
        self.activation_post_process.reset_min_max_vals()
        self.activation_post_process(x.detach())
        self._store()

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """As :meth:`~qsam2_ao.quantizers.base.QuantizerBase.calibrating`, with torch.ao's observer."""
        if self.is_weight:
            raise from_weight_alone(self.who)
        collecting = self._collecting = copy.deepcopy(self.activation_post_process)
        collecting.reset_min_max_vals()
        try:
            yield
        finally:
            self._collecting = None
        if not bool(torch.isinf(collecting.min_val).all() & torch.isinf(collecting.max_val).all()):
            self.activation_post_process = collecting
            self._store()

    @torch.no_grad()
    def _store(self) -> None:
        """Take over the observer's scale and zero point, as training does at every call."""
        observer = self.activation_post_process
        if not bool(torch.isfinite(observer.min_val).all() & torch.isfinite(observer.max_val).all()):
            raise non_finite_start(self.who)
        for stored, value in zip((self.scale, self.zero_point), self.calculate_qparams(), strict=True):
            stored.resize_(value.shape).copy_(value)

    def forward(self, X: Tensor) -> Tensor:
        """Fake-quantize ``X``; its shape and dtype stay.

        Raises:
            CalibrationError: An activation quantizer is evaluated before it has seen data.
        """
        if self._collecting is not None:
            self._collecting(X.detach())
            return X
        learning = self.training and bool(self.observer_enabled)
        if learning:
            return super().forward(X)
        if X.numel() == 0 or not self.fake_quant_enabled:
            return X
        if not self.is_initialized:
            if not self.is_weight:
                raise no_range(self.who)
            self.initialize(X)
        x = X.float()
        values, low, high = deployed_values(
            x, self.scale, self.zero_point.float(), self.quant_min, self.quant_max, per_channel=self.is_weight
        )
        return (straight_through(x.clamp(low, high), values) if torch.is_grad_enabled() else values).to(X.dtype)
