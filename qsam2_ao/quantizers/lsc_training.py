"""How the range that LSC learns moves: once per step of the optimizer, with what all calls of the step saw."""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..native.cuda import on_its_device
from .flags import non_finite
from .grids import ClipRange
from .lsc_function import LSCSettings, fused
from .lsc_range import RUNNING, STATISTICS, LSCRange
from .pool import Pool
from .sampling import even_sample
from .scalar_ranges import LARGEST_LOG_ALPHA, ScalarRange, on_host, scalar_statistics
from .statistics import tensor_statistics, world_size
from .step import REGISTER, Step
from .weight_cache import recomputing

logger = logging.getLogger(__name__)


class LSCTraining(LSCRange):
    """The range of a call in training and in eval, brought up to date as the mode and the step ask for."""

    momentum: float
    stats_momentum: float
    learned: bool = False
    """Whether an optimizer has had its range."""
    _settings: LSCSettings
    _TRANSIENT: ClassVar[tuple[str, ...]] = (*LSCRange._TRANSIENT, "_alpha_version", "_number", "_at_limit")

    def _reset_transients(self) -> None:
        super()._reset_transients()
        self._alpha_version = (0, 0)
        self._at_limit: bool | Tensor = False
        # A tensor, since torch.compile would compile anew for every other number.
        self._number = torch.tensor(REGISTER.add(self), device="cpu")

    def _current_range(self, x: Tensor) -> ClipRange | ScalarRange:
        """Clip range for ``x``, after the statistics have been brought up to date as the mode asks for."""
        learns = self.follows and not recomputing()
        starting = not self.is_initialized
        if starting:
            if not self.follows:
                self._refuse_unstarted_activation()
            self._start_from_call(x)
        clip: ClipRange | ScalarRange | None = None
        if learns and not starting:
            clip = self._learn(x)
        elif self.is_weight and self._flag("observer_enabled"):
            clip = self._learn_weight(x)
        elif self.follows and not self.is_weight and fused(x):
            clip = self._fused_range(x, learns=False)
        if clip is None:
            clip = self._range(held=self.follows)
        if self.follows and not self.is_weight:
            self._at_limit = clip.at_limit  # of all of a step's calls
        return clip

    @torch.no_grad()
    def drop_widening(self) -> None:
        """Where an activation's range reaches all of its values, drop a gradient that would widen it.

        The sum over a step's calls and ranks counts: however a batch is dealt out, the range learns the same. In the
        step in which it starts nothing is dropped: ranks that start from batches of their own agree at its end.
        """
        grad, step = self.log_alpha.grad, self.step
        if grad is None or self.is_weight or not self.follows or not self.is_initialized:
            return
        called = step is not None and not step.ended
        if called and step is not None and step.started is not None:
            return
        # A rank that did not call it has the same range as those that did.
        at_limit = self._at_limit if called else self._range().at_limit
        if at_limit is True:
            grad.clamp_min_(0)
        elif at_limit is not False:
            grad.copy_(torch.where(at_limit, grad.clamp_min(0), grad))

    @torch.no_grad()
    def _start_from_call(self, x: Tensor) -> None:
        """Start from the first call of a training; ranks may differ in which calls they make, and agree at its end."""
        if self.is_weight:
            self.initialize(x)
            return
        stats = tensor_statistics(x)
        self._start(stats, even_sample(x))
        numbers = tuple(value.item() for value in stats) if on_host(x) else tuple(stats)
        self.step = Step(self.statistics, started=Pool.of(numbers, x.numel()))

    @torch.no_grad()
    def _learn(self, x: Tensor) -> ClipRange | None:
        """Take a call's statistics into those of the step; the step's first call opens it.

        Returns:
            The range, where the kernels for GPUs make it with the statistics.
        """
        if self._alpha_moved():
            # Something other than torch's optimizers moved it: a step has ended.
            if world_size() > 1:
                logger.warning("%s: alpha was moved by no torch.optim.Optimizer; ranks are not merged", self.who)
            self.end_step()
        if self.is_weight:
            clip = self._learn_weight(x)
            # The deviation is finite just when all weights are.
            self._check_finite((self.std,), self.who)
            return clip
        if fused(x):
            clip = self._fused_range(x, learns=True)
            self._check_finite(self._stats, self.who)
            return clip
        if on_host(x):
            stats: Any = scalar_statistics(x)
            if not math.isfinite(sum(stats)):
                raise non_finite(self.who)
        else:
            stats = tensor_statistics(x)
            # On the CPU the batch is judged before it is taken in; elsewhere the running averages, later.
            self._check_finite(self._stats if x.is_cuda else stats, self.who)
        pool = Pool.of(stats, x.numel())
        if self.step is not None and not self.step.ended and self.step.pool is not None:
            pool = self.step.pool.joined(pool)
        self.take(pool)
        return None

    @torch.no_grad()
    def _learn_weight(self, x: Tensor) -> ClipRange | None:
        """Take a weight's statistics; the range too, where the kernels for GPUs make it with them."""
        if not fused(x) or self.held.numel():
            self._store(self._weight_statistics(x))
            return None
        from .lsc_range_triton import weight_range

        alphas = (self.alpha_bar, self.log_alpha.detach())
        share = self._gradient_share(x.numel(), self.follows)
        settings = (self._grid, self.granularity, self.group_size)
        return on_its_device(weight_range)(x.detach(), *settings, self._stats, alphas, share)

    @torch.no_grad()
    def _fused_range(self, x: Tensor, learns: bool) -> ClipRange:
        """An activation's range in this step by the kernels for GPUs, which take ``x`` in where it is learned from."""
        from .lsc_range_triton import activation_range

        if learns and (self.step is None or self.step.ended):
            self.step = Step(self.statistics)
        step = self.step or Step(self._stats)
        alphas = (self.alpha_bar, self.log_alpha.detach())
        share = self._gradient_share(x.numel(), self.follows)
        clip, pool = on_its_device(activation_range)(
            *(x.detach(), self._grid, step.base, step.pool, self._stats, alphas, self.stats_momentum, share, learns)
        )
        if learns:
            step.pool = pool
        return cast(ClipRange, clip)

    @torch.no_grad()
    def take(self, pool: Pool | None, base: tuple[Any, ...] | None = None) -> None:
        """Let an activation's running statistics be those of the step's beginning, moved towards ``pool``.

        Args:
            pool: What all calls of the step saw; None where there was none.
            base: The statistics of the step's beginning; those that hold in this step by default.
        """
        if self.step is None or self.step.ended:
            self.step = Step(base or self.statistics)
        self.step.pool = pool
        base = base or self.step.base
        share = 1 - self.stats_momentum
        for key, before, now in zip(STATISTICS, base, base if pool is None else pool.statistics(), strict=True):
            value, buffer = before + share * (now - before), cast(Tensor, self._buffers[key])
            buffer.copy_(value) if isinstance(value, Tensor) else buffer.fill_(value)

    def end_step(self) -> None:
        """End a training step: alpha_bar follows alpha, and the next call finds a new range."""
        if self.follows and self.is_initialized:
            with torch.no_grad():
                self.alpha_bar.lerp_(self.log_alpha.exp(), 1 - self.momentum)
            self._remember_alpha()
        if self.step is not None:
            self.step.ended = True
        self._shared.end_step()

    def _alpha_moved(self) -> bool:
        """Whether alpha is another than at the end of the last step."""
        log_alpha = self.log_alpha.detach()
        if log_alpha.is_cuda and self._alpha_version == (id(self.log_alpha), log_alpha._version):
            return False  # to compare the values would wait for the device
        self._alpha_version = (id(self.log_alpha), log_alpha._version)
        return not torch.equal(self._alpha_then, log_alpha)

    def start_as(self, stats: tuple[float, ...], log_alpha: float, alpha_bar: float) -> None:
        """Start an activation's range from numbers: what the ranks' first batches gave together.

        Args:
            stats: Mean, deviation and extremes.
            log_alpha: Logarithm of alpha.
            alpha_bar: Its running average.
        """
        with torch.no_grad():
            for key, value in zip(RUNNING, (*stats, alpha_bar), strict=True):
                cast(Tensor, self._buffers[key]).fill_(value)
            self.log_alpha.fill_(log_alpha)
        self._flags.raise_flag("initialized", self.initialized)

    def qparams_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point that a forward of ``x`` quantizes with, here and now.

        For weights this refreshes the cached statistics from ``x``.

        Args:
            x: The weight or activation.

        Returns:
            Scale and zero point, float32, shape [1], [out] or [out, n_groups].
        """
        return self._tensors(self._current_range(x))

    def training_range(self, x: Tensor) -> tuple[ClipRange, Tensor]:
        """Clip range of a training call, and the factor of alpha's gradient, in tensors of alpha's shape.

        Args:
            x: The weight or activation.
        """
        clip = self._current_range(x)
        factor = self._gradient_factor(clip, x.numel(), self.follows)
        if isinstance(clip, ClipRange):
            return clip, factor
        scale, zero_point, per_alpha = (torch.tensor([value], dtype=torch.float32) for value in clip[:3])
        return ClipRange(scale, zero_point, per_alpha, torch.tensor([clip.at_limit])), torch.tensor([factor])

    def _gradient_factor(self, clip: ClipRange | ScalarRange, elements: int, learning: bool) -> Any:
        """d scale / d log_alpha with LSQ's gradient scale: what log_alpha's gradient is multiplied by.

        A frozen range gets a zero gradient rather than none, for DDP's sake. Ranks that share a batch count its
        elements together, as one process would.
        """
        if isinstance(clip, ClipRange) and clip.factor is not None:
            return clip.factor
        share = self._gradient_share(elements, learning)
        if isinstance(clip, ScalarRange):
            return clip.scale_per_alpha * share * self._alpha_number()
        return clip.scale_per_alpha * share * self.log_alpha.detach().exp()

    def _gradient_share(self, elements: int, learning: bool) -> float:
        """LSQ's gradient scale."""
        sharing = elements / self.log_alpha.numel() * (1 if self.is_weight else world_size())
        return float(learning) / math.sqrt(sharing * self._settings.quant_max)

    def _alpha_number(self) -> float:
        return math.exp(min(self.log_alpha.item(), LARGEST_LOG_ALPHA))
