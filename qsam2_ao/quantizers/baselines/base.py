"""What the rivals' quantizers share: bits, switches, start from a weight or from calibration data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.ao.quantization import FakeQuantizeBase

from ...errors import CalibrationError, NonFiniteError, QConfigError
from ..grids import RangeStats
from ..sampling import CalibrationSample, even_sample
from ..statistics import row_views, tensor_statistics

SMALLEST_SCALE = 1e-8


class RivalFakeQuantize(FakeQuantizeBase):
    """Base of the rivals: weights per output channel, signed; activations per tensor, unsigned.

    As with LSC, a weight's state is sized by :meth:`initialize` (or a state dict), and an activation's is started by
    :meth:`calibrating` or else by the first training batch.

    Args:
        bits: 2 to 8 for weights, 4 to 8 for activations.
        is_weight: Quantizer of a weight, or of an activation.
        factory_kwargs: ``device`` of the state, as torch.ao passes it.

    Raises:
        QConfigError: Bits out of range.
    """

    #: Parameters and buffers with one value per scale.
    sized: ClassVar[tuple[str, ...]] = ()
    #: Those of them that are learned.
    ranges: ClassVar[tuple[str, ...]] = ()
    initialized: Tensor

    def __init__(self, bits: int, *, is_weight: bool = False, factory_kwargs: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if bits not in (range(2, 9) if is_weight else range(4, 9)):
            raise QConfigError(f"{'weights' if is_weight else 'activations'} cannot have {bits!r} bits here")
        self.bits, self.is_weight = bits, is_weight
        self.quant_min: int = -(2 ** (bits - 1)) if is_weight else 0
        self.quant_max: int = self.quant_min + 2**bits - 1
        self.dtype = torch.qint8 if is_weight else torch.quint8
        self.qscheme = torch.per_channel_symmetric if is_weight else torch.per_tensor_affine
        self.ch_axis, self.is_dynamic = 0 if is_weight else -1, False
        self.device = (factory_kwargs or {}).get("device")
        self.register_buffer("initialized", torch.zeros(1, dtype=torch.uint8, device=self.device))
        self._calibration: CalibrationSample | None = None

    def _empty(self) -> Tensor:
        return torch.ones(0 if self.is_weight else 1, device=self.device)

    @property
    def activation_post_process(self) -> RivalFakeQuantize:
        """The observer that torch.ao's FX mode looks for inside a fake-quantizer."""
        return self

    @property
    def who(self) -> str:
        """What error messages call this quantizer."""
        return f"{type(self).__name__} of {'a weight' if self.is_weight else 'an activation'}"

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Size and start the range from a weight or a batch of an activation.

        Raises:
            NonFiniteError: ``x`` holds NaN or infinity.
        """
        if self.is_weight:
            (rows,) = row_views(x.detach().float(), "channel", None)
            if not bool(torch.isfinite(rows).all()):
                raise NonFiniteError(f"{self.who}: cannot start from a tensor with NaN or infinite values")
            self._set(self.start_weight(rows))
        else:
            self._start_activation(tensor_statistics(x), even_sample(x))

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Collect an activation's statistics, passing it through; start the range at the end."""
        collected = self._calibration = CalibrationSample()
        try:
            yield
        finally:
            self._calibration = None
        if collected.counts:
            self._start_activation(collected.statistics(), torch.cat(collected.samples))

    @torch.no_grad()
    def _start_activation(self, stats: RangeStats, sample: Tensor) -> None:
        if not all(bool(torch.isfinite(value).all()) for value in stats):
            raise NonFiniteError(f"{self.who}: cannot start from a tensor with NaN or infinite values")
        self._set(self.start_activation(stats, sample))

    def _set(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            current = getattr(self, name)
            current.data = value.to(current).reshape(-1).clone()
        self.initialized.fill_(1)

    @abstractmethod
    def start_weight(self, rows: Tensor) -> dict[str, Tensor]:
        """State to start from, of a weight as rows [out, in]."""

    @abstractmethod
    def start_activation(self, stats: RangeStats, sample: Tensor) -> dict[str, Tensor]:
        """State to start from, of an activation's exact statistics and a sample of its values."""

    @abstractmethod
    def fake_quantize(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x``, which is float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x``, in float32; its shape and dtype stay.

        Raises:
            CalibrationError: An activation quantizer is evaluated before it has seen data.
        """
        if self._calibration is not None:
            self._calibration.add(x.detach())
            return x
        if not self.fake_quant_enabled or x.numel() == 0:
            return x
        if not self.initialized:
            if not self.is_weight and not self.training:
                raise CalibrationError(f"{self.who}: no range yet; give calibration data or train first")
            self.initialize(x)
        return self.fake_quantize(x.float()).to(x.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_calibration": None}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for key in self.sized:
            current, incoming = getattr(self, key), state_dict.get(prefix + key)
            if incoming is not None and incoming.dim() == 1 and current.numel() == 0:
                current.data = torch.empty(incoming.shape, dtype=current.dtype, device=current.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def affine_from_range(low: Tensor, high: Tensor, quant_max: int) -> tuple[Tensor, Tensor]:
    """Scale and integer zero point of an unsigned grid over [low, high], widened to hold zero.

    Args:
        low: Lower end, [1].
        high: Upper end, [1].
        quant_max: Largest code.
    """
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / quant_max).clamp_min(SMALLEST_SCALE)
    return scale, torch.round(-low / scale).clamp(0, quant_max)


def straight_through(x: Tensor, values: Tensor) -> Tensor:
    """``values`` to the bit, with the gradient of ``x``."""
    return values.detach() + (x - x.detach())
