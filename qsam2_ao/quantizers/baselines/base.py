"""What the rivals' quantizers share: bits, switches, start from a weight or from calibration data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase

from ...errors import CalibrationError, NonFiniteError, QConfigError
from ..affine import broadcast_qparam, fake_quantize_affine
from ..flags import CachedFlags, FiniteCheck
from ..grids import RangeStats
from ..sampling import CalibrationSample, even_sample
from ..statistics import merge_across_ranks, row_views, tensor_statistics, world_size

SMALLEST_SCALE = 1e-8


class RivalFakeQuantize(FakeQuantizeBase):
    """Base of the rivals: weights per output channel, signed; activations per tensor, unsigned.

    As with LSC, a weight's state is sized by :meth:`initialize` (or a state dict), and an activation's is started by
    :meth:`calibrating` or else by the first training batch. A subclass computes as its method does while it learns.
    In eval mode, and while ``disable_observer`` freezes the ranges, nothing is learned, and the values are those of
    the deployed model to the bit: the same grid in :mod:`qsam2_ao.quantizers.affine`'s arithmetic.

    All parameters of a subclass are learned ranges; what is not learned is a buffer.

    Args:
        bits: 2 to 8 for weights, 4 to 8 for activations.
        is_weight: Quantizer of a weight, or of an activation.
        name: Of the layer, for error messages.
        factory_kwargs: ``device`` of the state, as torch.ao passes it.

    Raises:
        QConfigError: Bits out of range.
    """

    initialized: Tensor

    def __init__(
        self,
        bits: int,
        *,
        is_weight: bool = False,
        name: str = "",
        factory_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_bits(bits, is_weight)
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
        self._flags = CachedFlags()
        self._check_finite = FiniteCheck()
        self._calibration: CalibrationSample | None = None

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_flags", "_check_finite", "_calibration")
        return {key: value for key, value in self.__dict__.items() if key not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset_transients()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for key, current in (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)):
            incoming = state_dict.get(prefix + key)
            if incoming is not None and incoming.dim() == 1 and current.numel() == 0:
                current.data = torch.empty(incoming.shape, dtype=current.dtype, device=current.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RivalFakeQuantize:
        # Ranges stay float32 when the model is cast to a shorter type.
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved.float() if tensor.is_floating_point() else moved

        return super()._apply(keep_float32, recurse)

    def _flag(self, key: str) -> bool:
        return self._flags.read(key, getattr(self, key))

    @property
    def is_initialized(self) -> bool:
        """Whether the range has been started, by data, by :meth:`initialize` or by a state dict."""
        return self._flag("initialized")

    @property
    def activation_post_process(self) -> RivalFakeQuantize:
        """The observer that torch.ao's FX mode looks for inside a fake-quantizer."""
        return self

    @property
    def who(self) -> str:
        """What error messages call this quantizer."""
        return describe(self, self.is_weight, self.name)

    # --- starting ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Size and start the range from a weight or a batch of an activation.

        Raises:
            NonFiniteError: ``x`` holds NaN or infinity.
            CalibrationError: ``x`` is empty.
        """
        if x.numel() == 0:
            raise CalibrationError(f"{self.who}: cannot start from an empty tensor of shape {list(x.shape)}")
        if self.is_weight:
            (rows,) = row_views(x.detach().float(), "channel", None)
            self._refuse_non_finite(rows)
            self._set(self.start_weight(rows))
        else:
            stats = tensor_statistics(x)
            self._start_activation(merge_across_ranks(stats, x.numel()) if world_size() > 1 else stats, even_sample(x))

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Collect an activation's statistics, passing it through; start the range at the end.

        A quantizer that saw no data in the block is left as it was.

        Raises:
            CalibrationError: It is a weight's.
            NonFiniteError: The data held NaN or infinity.
        """
        if self.is_weight:
            raise CalibrationError(f"{self.who}: a weight quantizer starts from its weight; call initialize")
        collected = self._calibration = CalibrationSample()
        try:
            yield
        finally:
            self._calibration = None
        stats = collected.statistics(self.initialized.device)
        if stats is not None and collected.counts:
            self._start_activation(stats, collected.sample())

    @torch.no_grad()
    def _start_activation(self, stats: RangeStats, sample: Tensor) -> None:
        self._refuse_non_finite(torch.cat(stats))
        values = self.start_activation(stats, sample)
        if world_size() > 1:  # each rank has a sample of its own: agree on the mean
            for value in values.values():
                dist.all_reduce(value)
                value /= world_size()
        self._set(values)

    def _refuse_non_finite(self, values: Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            raise NonFiniteError(f"{self.who}: cannot start from a tensor with NaN or infinite values")

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
        learning = self.training and self._flag("observer_enabled")
        if x.numel() == 0 or not (quantizing or learning):
            return x
        if not self.is_initialized:
            if not self.is_weight and not learning:
                raise CalibrationError(
                    f"{self.who}: no range yet; run calibration data through the prepared model "
                    "(calibrate_activations) or a training step before evaluating it"
                )
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


def check_bits(bits: int, is_weight: bool) -> None:
    """Refuse bit widths that a rival's quantizer does not have.

    Raises:
        QConfigError: Naming the bits and what is allowed.
    """
    if bits not in (range(2, 9) if is_weight else range(4, 9)):
        raise QConfigError(f"{'weights have 2' if is_weight else 'activations have 4'} to 8 bits, not {bits!r}")


def describe(quantizer: nn.Module, is_weight: bool, name: str) -> str:
    """What error messages call a rival's quantizer."""
    kind = f"{'weight' if is_weight else 'activation'} quantizer ({type(quantizer).__name__})"
    return f"{kind} of {name!r}" if name else kind


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
