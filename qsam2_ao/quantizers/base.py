"""What LSC's quantizer and its rivals share: switches, dtype, start from a weight or from calibration data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.ao.quantization import FakeQuantizeBase

from ..errors import CalibrationError, NonFiniteError
from .flags import CachedFlags, FiniteCheck
from .grids import RangeStats
from .sampling import CalibrationSample, even_sample
from .statistics import merge_across_ranks, tensor_statistics, world_size


class QuantizerBase(FakeQuantizeBase):
    """A fake-quantizer whose range is started from data.

    A weight's range is sized and started by :meth:`initialize` (or a state dict), an activation's by
    :meth:`calibrating`, or else by the first training batch. Ranges stay float32 in a model of any dtype. A subclass
    sets ``bits``, ``is_weight``, ``name`` and ``_flags``, and registers the buffer ``initialized``.
    """

    bits: int
    is_weight: bool
    name: str
    initialized: Tensor
    _flags: CachedFlags
    _TRANSIENT: ClassVar[tuple[str, ...]] = ("_check_finite", "_calibration")
    """Attributes that a copy does not take over: :meth:`_reset_transients` makes its own."""

    # --- state -------------------------------------------------------------------------------------------

    def _reset_transients(self) -> None:
        self._check_finite = FiniteCheck()
        self._calibration: CalibrationSample | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in self._TRANSIENT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset_transients()

    def _take_sizes(self, state_dict: Mapping[str, Any], prefix: str, keys: Iterable[str], dims: int = 1) -> None:
        """Size what has no size yet as a state dict has it; other shapes are left to torch, which refuses them."""
        for key in keys:
            current, incoming = getattr(self, key), state_dict.get(prefix + key)
            if incoming is not None and incoming.dim() == dims and current.numel() == 0:
                current.data = torch.empty(incoming.shape, dtype=current.dtype, device=current.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(keeping_float32(fn), recurse)

    def _flag(self, key: str) -> bool:
        return self._flags.read(key, cast(Tensor, self._buffers[key]))

    @property
    def is_initialized(self) -> bool:
        """Whether the range has been started, by data, by :meth:`initialize` or by a state dict."""
        return self._flag("initialized")

    @property
    def follows(self) -> bool:
        """Whether the range follows data and what is learned: in training, unless ``disable_observer`` froze it."""
        return self.training and self._flag("observer_enabled")

    @property
    def activation_post_process(self) -> Any:
        """The observer that torch.ao's FX mode looks for inside a fake-quantizer: these observe by themselves."""
        return self

    @activation_post_process.deleter
    def activation_post_process(self) -> None:
        """torch.ao takes observers out of what it leaves in float; this one goes with its quantizer."""

    @property
    def kind(self) -> str:
        """What error messages call quantizers like this one."""
        return "weight quantizer" if self.is_weight else "activation quantizer"

    @property
    def who(self) -> str:
        """What error messages call this quantizer."""
        return named(self.kind, self.name)

    # --- starting ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialize(self, x: Tensor, gram: Tensor | None = None) -> None:
        """Size and start the range from a weight or a batch of an activation.

        Args:
            x: The weight, [out, ...], or a batch of the activation; with torch.distributed every rank gives one.
            gram: For weights, X^T X of the layer's inputs, for quantizers that start with the least error of the
                output.

        Raises:
            NonFiniteError: ``x`` holds NaN or infinity.
            CalibrationError: ``x`` is empty.
        """
        if x.numel() == 0:
            raise CalibrationError(f"{self.who}: cannot start from an empty tensor of shape {list(x.shape)}")
        if self.is_weight:
            self._start_from_weight(x, gram)
        else:
            stats = tensor_statistics(x)
            merged = merge_across_ranks(stats, x.numel()) if world_size() > 1 else stats
            self._start_from_sample(merged, even_sample(x))

    @property
    def collected(self) -> CalibrationSample | None:
        """What :meth:`calibrating` has collected so far; None outside of its block."""
        return self._calibration

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Collect an activation's statistics in any mode, passing it through; start the range at the end.

        A quantizer that saw no data in the block is left as it was.

        Raises:
            CalibrationError: It is a weight's.
            NonFiniteError: The data held NaN or infinity.
        """
        self._refuse_weight()
        collected = self._calibration = CalibrationSample()
        try:
            yield
        finally:
            self._calibration = None
        stats = collected.statistics(self.initialized.device)
        if stats is not None:
            with torch.no_grad():
                self._start_from_sample(stats, collected.sample())

    @abstractmethod
    def _start_from_weight(self, weight: Tensor, gram: Tensor | None) -> None:
        """Start a weight's range."""

    @abstractmethod
    def _start_from_sample(self, stats: RangeStats, sample: Tensor) -> None:
        """Start an activation's range from the statistics of all ranks, and this rank's sample, perhaps empty."""

    # --- what is refused ---------------------------------------------------------------------------------

    def _refuse_weight(self) -> None:
        if self.is_weight:
            raise from_weight_alone(self.who)

    def _refuse_non_finite(self, values: Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            raise non_finite_start(self.who)

    def _refuse_unstarted_activation(self) -> None:
        if not self.is_weight:
            raise no_range(self.who)


def keeping_float32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What ``Module.to`` does to each tensor, but for the dtype: ranges stay float32 in a model of a shorter type."""

    def moved(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        if not tensor.is_floating_point():
            return result
        # The numbers do not go through the shorter type.
        return (result if result.dtype == tensor.dtype else tensor.to(result.device)).float()

    return moved


def named(kind: str, name: str) -> str:
    """What error messages call a quantizer of a kind: with the name of its layer where that is known."""
    return f"{kind} of {name!r}" if name else kind


def no_range(who: str) -> CalibrationError:
    """The error of an activation's quantizer that is evaluated before it has seen any data."""
    return CalibrationError(
        f"{who}: no range yet; run calibration data through the prepared model (calibrate_activations) or a training "
        "step before evaluating it"
    )


def from_weight_alone(who: str) -> CalibrationError:
    """The error of a weight's quantizer that is calibrated like an activation's."""
    return CalibrationError(f"{who}: a weight quantizer starts from its weight; call initialize")


def non_finite_start(who: str) -> NonFiniteError:
    """The error of a quantizer that is started from NaN or infinity."""
    return NonFiniteError(f"{who}: cannot start from a tensor with NaN or infinite values")
