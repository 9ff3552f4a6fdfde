"""What the rivals' quantizers share: bits, switches, start from a weight or from calibration data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ....quantizers.affine import broadcast_qparam, fake_quantize_affine
from ....quantizers.base import QuantizerBase
from ....quantizers.flags import CachedFlags
from ....quantizers.grids import RangeStats, check_bit_width
from ....quantizers.statistics import row_views, world_size

SMALLEST_SCALE = 1e-8


class RivalFakeQuantize(QuantizerBase):
    """Base of the rivals: weights per output channel, signed; activations per tensor, unsigned.

    As with LSC, a weight's state is sized by :meth:`initialize` (or a state dict), and an activation's is started by
    :meth:`calibrating` or else by the first training batch. A subclass computes as its method does while it learns.
    In eval mode, and while ``disable_observer`` freezes the ranges, nothing is learned, and the values are those of
    the deployed model to the bit: the same grid in :mod:`qsam2_ao.quantizers.affine`'s arithmetic.

    All parameters of a subclass are learned ranges; what is not learned is a buffer.

    Args:
        bits: 2 to 8.
        is_weight: Quantizer of a weight, or of an activation.
        name: Of the layer, for error messages.
        factory_kwargs: ``device`` of the state, as torch.ao passes it.

    Raises:
        QConfigError: Bits out of range.
    """

    _TRANSIENT: ClassVar[tuple[str, ...]] = (*QuantizerBase._TRANSIENT, "_flags")

    def __init__(
        self,
        bits: int,
        *,
        is_weight: bool = False,
        name: str = "",
        factory_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_bit_width(bits, is_weight)
        self.bits, self.is_weight, self.name = bits, is_weight, name
        self.quant_min: int = -(2 ** (bits - 1)) if is_weight else 0
        self.quant_max: int = self.quant_min + 2**bits - 1
        self.dtype = torch.qint8 if is_weight else torch.quint8
        self.qscheme = torch.per_channel_symmetric if is_weight else torch.per_tensor_affine
        self.ch_axis, self.is_dynamic = 0 if is_weight else -1, False
        self.device = (factory_kwargs or {}).get("device")
        self.register_buffer("initialized", torch.zeros(1, dtype=torch.uint8, device=self.device))
        self._reset_transients()

    def _empty(self) -> Tensor:
        return torch.ones(0 if self.is_weight else 1, device=self.device)

    # --- state -------------------------------------------------------------------------------------------

    def _reset_transients(self) -> None:
        super()._reset_transients()
        self._flags = CachedFlags()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state = (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False))
        self._take_sizes(state_dict, prefix, [key for key, _ in state])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def kind(self) -> str:
        """What error messages call quantizers like this one."""
        return describe(self, self.is_weight)

    # --- starting ----------------------------------------------------------------------------------------

    def _start_from_weight(self, weight: Tensor, gram: Tensor | None) -> None:
        (rows,) = row_views(weight.detach().float(), "channel", None)
        self._refuse_non_finite(rows)
        self._set(self.start_weight(rows))

    def _start_from_sample(self, stats: RangeStats, sample: Tensor) -> None:
        if sample.numel() == 0:
            return
        self._refuse_non_finite(torch.cat(stats))
        values = self.start_activation(stats, sample)
        if world_size() > 1:  # each rank has a sample of its own: agree on the mean
            for value in values.values():
                dist.all_reduce(value)
                value /= world_size()
        self._set(values)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            current, value = getattr(self, name), value.reshape(-1)
            if current.shape == value.shape:
                current.copy_(value)
            else:
                current.data = value.to(current).clone()
        self.initialized.fill_(1)

    @abstractmethod
    def start_weight(self, rows: Tensor) -> dict[str, Tensor]:
        """State to start from, of a weight as rows [out, in]."""

    @abstractmethod
    def start_activation(self, stats: RangeStats, sample: Tensor) -> dict[str, Tensor]:
        """State to start from, of an activation's exact statistics and a sample of its values."""

    # --- quantizing --------------------------------------------------------------------------------------

    @abstractmethod
    def fake_quantize(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x``, which is float32, as the method does while it learns."""

    @abstractmethod
    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Scale and zero point, float32, [out] or [1]; an activation's zero point is an integer."""

    def passes(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """What carries the gradient to ``x`` while the range [low, high] is frozen: what lies inside."""
        return x.clamp(low, high)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x``, in float32; its shape and dtype stay.

        Raises:
            CalibrationError: An activation quantizer is evaluated before it has seen data.
            NonFiniteError: In training, ``x`` holds NaN or infinity.
        """
        if self._calibration is not None:
            self._calibration.add(x.detach())
            return x
        quantizing = self._flag("fake_quant_enabled")
        learning = self.follows
        if x.numel() == 0 or not (quantizing or learning):
            return x
        if not self.is_initialized:
            if not learning:
                self._refuse_unstarted_activation()
            self.initialize(x)
        if not quantizing:
            return x
        if not learning:
            return self._frozen(x.float()).to(x.dtype)
        # torch's operators would turn a NaN into a code.
        self._check_finite((x.detach(),), self.who)
        return self.fake_quantize(x.float()).to(x.dtype)

    @torch.no_grad()
    def on_grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` on the grid of :meth:`calculate_qparams` to the bit as it will be deployed, and the grid's ends."""
        scale, zero_point = self.calculate_qparams()
        return deployed_values(x, scale, zero_point, self.quant_min, self.quant_max, per_channel=self.is_weight)

    def _frozen(self, x: Tensor) -> Tensor:
        values, low, high = self.on_grid(x)
        if not torch.is_grad_enabled():
            return values
        through = self.passes(x, low, high)
        if self.training:  # a frozen range gets a zero gradient rather than none, for DDP's sake
            through = through + sum(parameter.sum() for parameter in self.parameters(recurse=False)) * 0
        return straight_through(through, values)

    def extra_repr(self) -> str:
        """Settings in one line."""
        return f"bits={self.bits}, is_weight={self.is_weight}"


def describe(quantizer: nn.Module, is_weight: bool) -> str:
    """What error messages call a rival's quantizers."""
    return f"{'weight' if is_weight else 'activation'} quantizer ({type(quantizer).__name__})"


@torch.no_grad()
def deployed_values(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, *, per_channel: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``x`` on a grid, to the bit as the deployed model will compute it, and the grid's ends.

    Args:
        x: The weight, [out, ...], or an activation of any shape; float32.
        scale: [out] or [1].
        zero_point: [out] or [1].
        quant_min: Smallest code.
        quant_max: Largest code.
        per_channel: Whether there is one scale per output channel.
    """
    if per_channel:
        scale, zero_point = (broadcast_qparam(t, x.shape) for t in (scale, zero_point))
    else:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    low, high = ((end - zero_point) * scale for end in (quant_min, quant_max))
    return fake_quantize_affine(x, scale, zero_point, quant_min, quant_max), low, high


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
