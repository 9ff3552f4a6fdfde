"""The clip range that LSC learns: its state, its start, and the scale and zero point that it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..errors import CalibrationError, NonFiniteError
from .alpha_search import search_alpha
from .base import QuantizerBase, keeping_float32
from .flags import CachedFlags
from .grids import ClipRange, Grid, RangeStats
from .scalar_ranges import ScalarRange, on_host, scalar_clip_range
from .statistics import hold, weight_statistics, world_size
from .step import Step
from .weight_cache import WeightCache

STATISTICS = ("mean", "std", "low", "high")
RUNNING = (*STATISTICS, "alpha_bar")
_LAZY = ("log_alpha", *RUNNING)
_FLAGS = ("fake_quant_enabled", "observer_enabled", "initialized")


class LSCRange(QuantizerBase):
    """The range mean ± alpha * std of a :class:`~qsam2_ao.quantizers.lsc.LSCFakeQuantize`, which sets its settings."""

    granularity: str
    group_size: int | None
    _grid: Grid

    log_alpha: nn.Parameter
    alpha_bar: Tensor
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    held: Tensor
    step: Step | None
    _alpha_then: Tensor
    snapped: bool = False
    """Whether :meth:`snap` was called last, and no training since."""
    _TRANSIENT: ClassVar[tuple[str, ...]] = (*QuantizerBase._TRANSIENT, "_shared")

    # --- state ----------------------------------------------------------------------------------------------

    def _make_range(self, device: torch.device | str | None) -> None:
        """Parameters and buffers, sized where the shape is known before the weight is."""
        size = 1 if self.granularity == "tensor" else 0  # channels and groups are sized by the weight
        self.log_alpha = nn.Parameter(torch.zeros(size, device=device))
        self.register_buffer("alpha_bar", torch.ones(size, device=device))
        for key in STATISTICS:
            self.register_buffer(key, torch.zeros(size, device=device))
        if self.is_weight:
            # Of a range that keep_scale holds: its centre minus the weight's mean, and its half width. Else empty.
            self.register_buffer("held", torch.zeros(2, 0, device=device))
        self.register_buffer("initialized", torch.zeros(1, dtype=torch.uint8, device=device))
        self._flags = CachedFlags(fake_quant_enabled=True, observer_enabled=True, initialized=False)
        self._reset_transients()
        self._forget_step()
        self._remember_alpha()

    def _reset_transients(self) -> None:
        super()._reset_transients()
        self._shared = WeightCache()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._take_sizes(state_dict, prefix, _LAZY, dims=2 if self.granularity == "group" else 1)
        if self.is_weight and prefix + "log_alpha" in state_dict:
            # Older state dicts, of ranges that were not held, have none.
            held = cast(dict[str, Any], state_dict).setdefault(prefix + "held", torch.zeros(2, 0))
            self.held = torch.empty(held.shape, device=self.held.device)
        # With assign=True what is loaded takes our place, and ranges are float32 in a model of any dtype.
        ours = {prefix + key for key in self.state_dict()}
        state_dict = {
            key: value.float() if key in ours and value.is_floating_point() else value
            for key, value in state_dict.items()
        }
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._forget_step()
        self._remember_alpha()
        for key in _FLAGS:
            self._flag(key)
        self.snapped = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._forget_step()
        super()._apply(fn, recurse)
        self._alpha_then = keeping_float32(fn)(self._alpha_then)
        return self

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Switch fake quantization on or off."""
        super().enable_fake_quant(enabled)
        self._flag("fake_quant_enabled")

    def enable_observer(self, enabled: bool = True) -> None:
        """Let the ranges follow the data and alpha, or freeze them."""
        super().enable_observer(enabled)
        self._flag("observer_enabled")
        self.snapped = self.snapped and not enabled

    def train(self, mode: bool = True) -> Any:
        """Set the mode; a weight that trains leaves its grid."""
        self.snapped = self.snapped and not mode
        return super().train(mode)

    @property
    def alpha(self) -> Tensor:
        """The learned half width of the clip range in standard deviations; shape as the scale."""
        return self.log_alpha.exp()

    @property
    def _stats(self) -> RangeStats:
        return RangeStats(self.mean, self.std, self.low, self.high)

    @property
    def statistics(self) -> tuple[Any, ...]:
        """An activation's running statistics as they are now: Python numbers on the CPU."""
        # Past torch's attribute lookup, which takes longer than what is done with them.
        buffers = [cast(Tensor, self._buffers[key]) for key in STATISTICS]
        return tuple(b.item() for b in buffers) if on_host(buffers[0]) else torch.cat(buffers).split(1)

    def _forget_step(self) -> None:
        """Open a new step with the next call: after the state was started, loaded or moved."""
        self.step = None
        self._shared.end_step()

    def _remember_alpha(self) -> None:
        self._alpha_then = self.log_alpha.detach().clone()

    # --- starting -------------------------------------------------------------------------------------------

    def _start_from_weight(self, weight: Tensor, gram: Tensor | None) -> None:
        self.held = self.held.new_zeros(2, 0)
        self._start(self._weight_statistics(weight), weight, gram)

    def _start_from_sample(self, stats: RangeStats, sample: Tensor) -> None:
        self._start(stats, sample, agree=True)

    def _start(self, stats: RangeStats, sample: Tensor, gram: Tensor | None = None, *, agree: bool = False) -> None:
        self._refuse_non_finite(torch.cat(tuple(stats)))
        if sample.numel():
            alpha = search_alpha(sample, stats, self._grid, self.granularity, self.group_size, gram)
        else:
            alpha = torch.ones_like(stats.std)
        if agree and world_size() > 1:
            # Each rank searched on its own sample: agree on the mean of the logarithms.
            votes = torch.cat([alpha.log(), torch.ones_like(alpha)]) * float(sample.numel() > 0)
            torch.distributed.all_reduce(votes)
            alpha = (votes[:1] / votes[1:]).exp()
        values = {"log_alpha": alpha.log(), "alpha_bar": alpha, **stats._asdict()}
        for key, value in values.items():
            current = getattr(self, key)
            if current.shape == value.shape:
                current.copy_(value)
            else:
                current.data = value.to(device=current.device, dtype=current.dtype).clone()
        self._flags.raise_flag("initialized", self.initialized)
        self._forget_step()
        self._remember_alpha()

    @torch.no_grad()
    def set_alpha(self, alpha: Tensor) -> None:
        """Clip at so many standard deviations from here on; the statistics stay.

        Args:
            alpha: Positive, of the shape of ``log_alpha``.
        """
        self.log_alpha.copy_(alpha.log())
        self.alpha_bar.copy_(alpha)
        self._forget_step()
        self._remember_alpha()

    @torch.no_grad()
    def keep_scale(self, weight: Tensor) -> None:
        """Let the range follow another weight from here on, with the scale and zero point that it has now.

        A weight that was rounded in the range keeps its codes, also where it does not reach the ends of the range: that
        far the range is then allowed beyond the weight's extremes, and its centre keeps its distance from the mean.

        Args:
            weight: The weight in place of the one that the range was started from, of its shape.
        """
        scale, zero_point = self.qparams()
        half = scale * (self._grid.steps / 2)
        middle = (self._grid.quant_min + self._grid.quant_max) / 2
        centre = torch.zeros_like(scale) if self._grid.zero_centred else (middle - zero_point) * scale
        self.held = self.held.new_zeros(2, 0)
        own = self._weight_statistics(weight)
        self.held = torch.stack([centre - own.mean, half])
        stats = hold(own, *self.held)
        self._store(stats)
        self.set_alpha(torch.where(stats.std > 0, half / stats.std, self.alpha_bar))

    def _weight_statistics(self, weight: Tensor) -> RangeStats:
        stats = weight_statistics(weight, self.granularity, self.group_size, zero_centred=self._grid.zero_centred)
        return stats if self.held.numel() == 0 else hold(stats, *self.held)

    def _store(self, stats: RangeStats) -> None:
        torch._foreach_copy_([getattr(self, key) for key in STATISTICS], list(stats))

    # --- the range ------------------------------------------------------------------------------------------

    def _range(self, *, held: bool = False) -> ClipRange | ScalarRange:
        """Clip range of alpha_bar and the running statistics, or of those held within a training step.

        For activations on the CPU it is of Python numbers.
        """
        base = self.step.base if held and self.step is not None else None
        if self.is_weight or not on_host(self.mean):
            return self._grid.clip_range(self._stats if base is None else RangeStats(*base), self.alpha_bar)
        mean, std, low, high = base or self.statistics
        alpha = self._buffers["alpha_bar"].item()  # type: ignore[union-attr]
        if not math.isfinite(mean + std + low + high + alpha):
            raise NonFiniteError(f"{self.who}: its learned range is not finite; training has diverged")
        return scalar_clip_range(self._grid, mean, std, low, high, alpha)

    def _tensors(self, clip: ClipRange | ScalarRange) -> tuple[Tensor, Tensor]:
        """Scale and zero point of a range as tensors."""
        if isinstance(clip, ClipRange):
            return clip.scale, clip.zero_point
        scale, zero_point = torch.tensor([[clip.scale], [clip.zero_point]], dtype=torch.float32)
        return scale, zero_point

    @property
    def codes(self) -> tuple[int, int]:
        """Smallest and largest code of the grid that :meth:`qparams` is about."""
        return self._grid.quant_min, self._grid.quant_max

    @torch.no_grad()
    def qparams(self, *, held: bool = False) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the last forward, from the stored statistics and alpha_bar.

        Args:
            held: In the middle of a training step, those that hold within it instead of those of eval.

        Returns:
            Scale and zero point, float32, shape [1], [out] or [out, n_groups]. The zero point of a weight may lie
            between two codes.

        Raises:
            CalibrationError: The range was never started.
            NonFiniteError: The stored state is not finite.
        """
        if not self.is_initialized:
            raise CalibrationError(f"{self.who}: no range yet; calibrate or train first")
        midway = self.step is not None and not self.step.ended and self.step.started is None
        scale, zero_point = self._tensors(self._range(held=held and midway))
        if not bool(torch.isfinite(scale).all() & torch.isfinite(zero_point).all()):
            raise NonFiniteError(f"{self.who}: its learned range is not finite; training has diverged")
        return scale, zero_point
