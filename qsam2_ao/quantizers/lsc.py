"""LSC, learnable statistical clipping: the fake-quantizer of weights and activations."""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import FakeQuantizeBase as AOFakeQuantizeBase
from torchao.quantization.pt2e import FakeQuantizeBase as PT2EFakeQuantizeBase

from ..errors import CalibrationError, NonFiniteError, QConfigError
from .affine import broadcast_qparam, fake_quantize_affine
from .compiled import observe_outside, training_range
from .constructor import QuantizerConstructor, check_spec, is_per_tensor
from .flags import CachedFlags, FiniteCheck, non_finite
from .function import LSCFunction, Settings, SharedInput
from .grids import ClipRange, Grid, RangeStats, activation_grid, weight_grid
from .host import LARGEST_LOG_ALPHA, NumberRange, clip_numbers, number_statistics, on_host
from .integers import integer_codes, integer_range
from .mse import search_alpha
from .pool import Pool
from .pt2e import insert_quantize_dequantize
from .sampling import CalibrationSample, even_sample
from .shared import SharedOutput, recomputing
from .snapping import snap_weights
from .statistics import (
    check_granularity,
    hold,
    merge_across_ranks,
    tensor_statistics,
    weight_statistics,
    world_size,
)
from .step import REGISTER, Step
from .torch_ao import check_conversion, is_depthwise

_STATISTICS = ("mean", "std", "low", "high")
_RUNNING = (*_STATISTICS, "alpha_bar")
_LAZY = ("log_alpha", *_RUNNING)
_FLAGS = ("fake_quant_enabled", "observer_enabled", "initialized")

logger = logging.getLogger(__name__)


class LSCFakeQuantize(AOFakeQuantizeBase, PT2EFakeQuantizeBase):
    """Fake-quantize in the clip range mean ± alpha * std with a learned alpha (Q-SAM2, arXiv 2506.09782).

    The learned parameter is ``log_alpha``, alpha = exp(log_alpha): always positive, and a step of an
    optimizer changes alpha by a relative amount. Exclude it from weight decay. The forward pass uses
    ``alpha_bar``, the running average of alpha, whose gradient goes straight to alpha.

    Weights: the statistics are those of the tensor passed in, in training and in eval, and the buffers cache
    the last ones, so that :meth:`qparams` after a forward gives what that forward used. Their shape
    follows the weight: call :meth:`initialize` before making an optimizer. A state dict sizes a module that
    has no shape yet.

    Activations: per tensor, running averages of mean, deviation and extremes, started (with alpha) by
    :meth:`calibrating`, or else by the first training batch.

    Training steps: ranges move once per step of the optimizer, whatever is called how often in it (frames, clicks,
    micro-batches, the recomputation of activation checkpointing, data-parallel ranks that do different work). Within
    a step alpha_bar and the statistics that an activation is quantized with hold still, while the buffers take in the
    pooled statistics of the step's calls; those are what eval, :meth:`calculate_qparams` and the next step use. torch's
    optimizers tell the end of a step, and with torch.distributed it merges what all ranks saw, in one collective for
    all ranges of the optimizer. Without such an optimizer a step ends where alpha has changed, and ranks are not
    merged. State dicts are complete between steps; a deep copy is so at any time.

    Switches as in torch.ao: ``disable_fake_quant`` passes the input through, ``disable_observer`` freezes the
    ranges (statistics of weights and activations, and alpha). In eval mode nothing is learned.

    torch.compile: training learns the same ranges as in eager mode, without a break in the graph, once the weights'
    quantizers are started; with ``disable_fake_quant`` an observing quantizer breaks it.

    Args:
        bits: 2 to 8 for weights, 4 to 8 for activations.
        is_weight: Quantizer of a weight, or of an activation.
        granularity: "tensor", "channel" or "group"; None for "channel" (weights) or "tensor" (activations).
        group_size: Inputs per group along the flattened input dimensions, for "group".
        grid: Weight grid ("midrise", "symmetric", "asymmetric", "mean"); None for the bit width's default.
        momentum: Of alpha_bar; 0 is plain learning.
        stats_momentum: Of the running activation statistics.
        name: Of the layer, for error messages.
        factory_kwargs: ``device`` of the parameters, as torch.ao passes it.
        dtype: Of the codes in a converted PT2E graph, int8 or uint8; None for int8 (weights) or uint8. It comes from
            torchao's ``QuantizationSpec``, like the following ones, which are checked against the other arguments.
        quant_min: Smallest code.
        quant_max: Largest code.
        qscheme: A per-tensor scheme is a weight's default granularity "tensor".
        is_dynamic: Not supported.

    Raises:
        QConfigError: Unknown bits, grid, granularity or momentum, or a ``QuantizationSpec`` that contradicts them.

    Example:
        >>> qconfig = torch.ao.quantization.QConfig(
        ...     weight=LSCFakeQuantize.with_args(bits=4, is_weight=True),
        ...     activation=LSCFakeQuantize.with_args(bits=8),
        ... )
    """

    log_alpha: nn.Parameter
    alpha_bar: Tensor
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    held: Tensor
    initialized: Tensor
    step: Step | None
    _alpha_then: Tensor
    snapped: bool = False
    """Whether :meth:`snap` was called last, and no training since."""
    _depthwise: bool = False

    def __init__(
        self,
        bits: int = 8,
        *,
        is_weight: bool = False,
        granularity: str | None = None,
        group_size: int | None = None,
        grid: str | None = None,
        momentum: float = 0.9,
        stats_momentum: float = 0.95,
        name: str = "",
        factory_kwargs: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__()
        granularity = granularity or ("channel" if is_weight and not is_per_tensor(qscheme) else "tensor")
        check_granularity(granularity, group_size)
        if not is_weight and (granularity != "tensor" or grid is not None):
            raise QConfigError(
                "activations are quantized per tensor on an affine grid, not with "
                f"granularity={granularity!r}, grid={grid!r}; pass is_weight=True for a weight"
            )
        for key, value in (("momentum", momentum), ("stats_momentum", stats_momentum)):
            if not 0 <= value < 1:
                raise QConfigError(f"{key} must be in [0, 1), got {value!r}")
        self._grid: Grid = weight_grid(grid, bits) if is_weight else activation_grid(bits)
        check_spec(self._grid, granularity, dtype, quant_min, quant_max, qscheme, is_dynamic)
        self.code_dtype = dtype or (torch.int8 if is_weight else torch.uint8)
        self.bits = bits
        self.is_weight = is_weight
        self.granularity = granularity
        self.group_size = group_size
        self.grid = self._grid.name
        codes = (self._grid.quant_min, self._grid.quant_max)
        self._settings = Settings(*codes, granularity, group_size, one_sided=not is_weight)
        self.momentum = momentum
        self.stats_momentum = stats_momentum
        self.name = name
        # What torch.ao looks at: the integer codes that its dtype holds the grid in.
        self.dtype = torch.qint8 if is_weight else torch.quint8
        self.quant_min, self.quant_max = integer_range(self._grid, self.dtype)
        self.is_dynamic = False
        self.ch_axis = -1 if granularity == "tensor" else 0
        symmetric = self._grid.zero_centred
        if granularity == "tensor":
            self.qscheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        else:
            self.qscheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine

        device = (factory_kwargs or {}).get("device")
        size = 1 if granularity == "tensor" else 0  # channels and groups are sized by the weight
        self.log_alpha = nn.Parameter(torch.zeros(size, device=device))
        self.register_buffer("alpha_bar", torch.ones(size, device=device))
        for key in _STATISTICS:
            self.register_buffer(key, torch.zeros(size, device=device))
        if is_weight:
            # Of a range that keep_scale holds: its centre minus the weight's mean, and its half width. Else empty.
            self.register_buffer("held", torch.zeros(2, 0, device=device))
        self.register_buffer("initialized", torch.zeros(1, dtype=torch.uint8, device=device))
        self._flags = CachedFlags(fake_quant_enabled=True, observer_enabled=True, initialized=False)
        self._reset_transients()
        self._forget_step()
        self._remember_alpha()

    @classmethod
    def with_args(cls, **kwargs: Any) -> QuantizerConstructor:
        """A constructor with these arguments, for torch.ao's ``QConfig`` or torchao's ``QuantizationSpec``."""
        return QuantizerConstructor(functools.partial(cls, **kwargs))

    # --- state -------------------------------------------------------------------------------------------

    def _reset_transients(self) -> None:
        self._check_finite = FiniteCheck()
        self._shared = SharedOutput()
        self._calibration: CalibrationSample | None = None
        self._alpha_version = (0, 0)
        # A tensor, since torch.compile would compile anew for every other number.
        self._number = torch.tensor(REGISTER.add(self), device="cpu")

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_check_finite", "_shared", "_calibration", "_alpha_version", "_number")
        return {key: value for key, value in self.__dict__.items() if key not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset_transients()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for key in _LAZY:
            current, incoming = getattr(self, key), state_dict.get(prefix + key)
            # Another granularity's shape is left to torch, which refuses the mismatch.
            dims = 2 if self.granularity == "group" else 1
            if incoming is not None and incoming.dim() == dims and current.numel() == 0:
                current.data = torch.empty(incoming.shape, dtype=current.dtype, device=current.device)
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LSCFakeQuantize:
        # Ranges stay float32 when the model is cast to a shorter type.
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved.float() if tensor.is_floating_point() else moved

        self._forget_step()
        super()._apply(keep_float32, recurse)
        self._alpha_then = keep_float32(self._alpha_then)
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

    def train(self, mode: bool = True) -> LSCFakeQuantize:
        """Set the mode; a weight that trains leaves its grid."""
        self.snapped = self.snapped and not mode
        return super().train(mode)

    def _flag(self, key: str) -> bool:
        return self._flags.read(key, cast(Tensor, self._buffers[key]))

    @property
    def is_initialized(self) -> bool:
        """Whether the range has been started, by data, by :meth:`initialize` or by a state dict."""
        return self._flag("initialized")

    @property
    def follows(self) -> bool:
        """Whether the range follows data and alpha: in training, unless ``disable_observer`` froze it."""
        return self.training and self._flag("observer_enabled")

    @property
    def alpha(self) -> Tensor:
        """The learned half width of the clip range in standard deviations; shape as the scale."""
        return self.log_alpha.exp()

    @property
    def who(self) -> str:
        """What error messages call this quantizer."""
        kind = "weight" if self.is_weight else "activation"
        return f"{kind} quantizer of {self.name!r}" if self.name else f"{kind} quantizer"

    @property
    def _stats(self) -> RangeStats:
        return RangeStats(self.mean, self.std, self.low, self.high)

    @property
    def activation_post_process(self) -> LSCFakeQuantize:
        """The observer that torch.ao's FX mode looks for inside a fake-quantizer: LSC observes by itself."""
        return self

    # --- starting ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialize(self, x: Tensor, gram: Tensor | None = None) -> None:
        """Size and start the range: statistics of ``x``, and the alpha of least quantization error.

        Args:
            x: The weight, [out, ...], or a batch of the activation; with torch.distributed every rank gives one.
            gram: For weights, X^T X of the layer's inputs: alpha then minimises the error of the output.

        Raises:
            NonFiniteError: ``x`` holds NaN or infinity.
            CalibrationError: ``x`` is empty.
        """
        if x.numel() == 0:
            raise CalibrationError(f"{self.who}: cannot start from an empty tensor of shape {list(x.shape)}")
        if self.is_weight:
            self.held = self.held.new_zeros(2, 0)
            self._start(self._weight_statistics(x), x, gram)
        else:
            stats = tensor_statistics(x)
            self._start(merge_across_ranks(stats, x.numel()) if world_size() > 1 else stats, even_sample(x), agree=True)

    init_from = initialize

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

    def _start(self, stats: RangeStats, sample: Tensor, gram: Tensor | None = None, *, agree: bool = False) -> None:
        if not all(bool(torch.isfinite(value).all()) for value in stats):
            raise NonFiniteError(f"{self.who}: cannot start from a tensor with NaN or infinite values")
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
        alpha = torch.where(stats.std > 0, half / stats.std, self.alpha_bar)
        self.log_alpha.copy_(alpha.log())
        self.alpha_bar.copy_(alpha)
        self._forget_step()
        self._remember_alpha()

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Collect activation statistics in any mode, passing the input through; start the range at the end.

        A quantizer that saw no data in the block is left as it was.

        Raises:
            NonFiniteError: The data held NaN or infinity.
        """
        if self.is_weight:
            raise CalibrationError(f"{self.who}: a weight quantizer starts from its weight; call initialize")
        collected = self._calibration = CalibrationSample()
        try:
            yield
        finally:
            self._calibration = None
        stats = collected.statistics(self.log_alpha.device)
        if stats is not None:
            with torch.no_grad():
                self._start(stats, collected.sample(), agree=True)

    # --- ranges ------------------------------------------------------------------------------------------

    def _weight_statistics(self, weight: Tensor) -> RangeStats:
        stats = weight_statistics(weight, self.granularity, self.group_size, zero_centred=self._grid.zero_centred)
        return stats if self.held.numel() == 0 else hold(stats, *self.held)

    def _store(self, stats: RangeStats) -> None:
        torch._foreach_copy_([getattr(self, key) for key in _STATISTICS], list(stats))

    def _current_range(self, x: Tensor) -> ClipRange | NumberRange:
        """Clip range for ``x``, after the statistics have been brought up to date as the mode asks for."""
        learns = self.follows and not recomputing()
        if not self.is_initialized:
            if not self.is_weight and not self.follows:
                raise CalibrationError(
                    f"{self.who}: no range yet; run calibration data through the prepared model "
                    "(calibrate_activations) or a training step before evaluating it"
                )
            self._start_from_call(x)
        elif learns:
            self._learn(x)
        elif self.is_weight and self._flag("observer_enabled"):
            with torch.no_grad():
                self._store(self._weight_statistics(x))
        return self._range(held=self.follows)

    def _range(self, *, held: bool = False) -> ClipRange | NumberRange:
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
        return clip_numbers(self._grid, mean, std, low, high, alpha)

    # --- the training step -------------------------------------------------------------------------------

    @property
    def statistics(self) -> tuple[Any, ...]:
        """An activation's running statistics as they are now: Python numbers on the CPU."""
        # Past torch's attribute lookup, which takes longer than what is done with them.
        buffers = [cast(Tensor, self._buffers[key]) for key in _STATISTICS]
        return tuple(b.item() for b in buffers) if on_host(buffers[0]) else tuple(b.clone() for b in buffers)

    @torch.no_grad()
    def _learn(self, x: Tensor) -> None:
        """Take a call's statistics into those of the step; the step's first call opens it."""
        if self._alpha_moved():
            # Something other than torch's optimizers moved it: a step has ended.
            if world_size() > 1:
                logger.warning("%s: alpha was moved by no torch.optim.Optimizer; ranks are not merged", self.who)
            self.end_step()
        if self.is_weight:
            self._store(self._weight_statistics(x))
            # The deviation is finite just when all weights are.
            self._check_finite((self.std,), self.who)
            return
        if on_host(x):
            stats: Any = number_statistics(x)
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
        for key, before, now in zip(_STATISTICS, base, base if pool is None else pool.statistics(), strict=True):
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

    def _forget_step(self) -> None:
        """Open a new step with the next call: after the state was started, loaded or moved."""
        self.step = None
        self._shared.end_step()

    def _alpha_moved(self) -> bool:
        """Whether alpha is another than at the end of the last step."""
        log_alpha = self.log_alpha.detach()
        if log_alpha.is_cuda and self._alpha_version == (id(self.log_alpha), log_alpha._version):
            return False  # to compare the values would wait for the device
        self._alpha_version = (id(self.log_alpha), log_alpha._version)
        return not torch.equal(self._alpha_then, log_alpha)

    def _remember_alpha(self) -> None:
        self._alpha_then = self.log_alpha.detach().clone()

    def start_as(self, stats: tuple[float, ...], log_alpha: float, alpha_bar: float) -> None:
        """Start an activation's range from numbers: what the ranks' first batches gave together.

        Args:
            stats: Mean, deviation and extremes.
            log_alpha: Logarithm of alpha.
            alpha_bar: Its running average.
        """
        with torch.no_grad():
            for key, value in zip(_RUNNING, (*stats, alpha_bar), strict=True):
                cast(Tensor, self._buffers[key]).fill_(value)
            self.log_alpha.fill_(log_alpha)
        self._flags.raise_flag("initialized", self.initialized)

    def _alpha_number(self) -> float:
        return math.exp(min(self.log_alpha.item(), LARGEST_LOG_ALPHA))

    def qparams_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point that a forward of ``x`` quantizes with, here and now.

        For weights this refreshes the cached statistics from ``x``.

        Args:
            x: The weight or activation.

        Returns:
            Scale and zero point, float32, shape [1], [out] or [out, n_groups].
        """
        return self._tensors(self._current_range(x))

    def _tensors(self, clip: ClipRange | NumberRange) -> tuple[Tensor, Tensor]:
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

    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """:meth:`qparams` as torch.ao needs them: for the integer codes ``quant_min`` to ``quant_max`` of ``dtype``.

        Args:
            **kwargs: None are used; torch.ao's signature.

        Returns:
            Scale, float32, and zero point, int32, in the shape of :meth:`qparams`.

        Raises:
            QConfigError: The grid has no such codes, or torch.ao's conversion asks and would make other values of them.
            CalibrationError: The range was never started.
            NonFiniteError: The stored state is not finite.
        """
        scale, zero_point, *_ = integer_codes(self._grid, *self.qparams(), self.dtype, self.who)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("torch.ao."):
            check_conversion(self, caller, self._depthwise)
        return scale, zero_point

    @torch.no_grad()
    def final_qparams(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scale and zero point of a weight as in eval, for its conversion; the quantizer goes to eval mode.

        Args:
            weight: [out, ...].

        Returns:
            Scale and zero point in the shape of :meth:`qparams`, and both once more, to broadcast against the weight.

        Raises:
            NonFiniteError: NaN or infinity in the weight.
        """
        if not bool(torch.isfinite(weight).all()):
            raise NonFiniteError(f"{self.who}: the weight has NaN or infinite values; the training may have diverged")
        scale, zero_point = self.eval().qparams_for(weight)
        wide_scale, wide_zero = (broadcast_qparam(t, weight.shape, self.group_size) for t in (scale, zero_point))
        return scale, zero_point, wide_scale, wide_zero

    @torch.no_grad()
    def snap(self, weight: Tensor) -> Tensor:
        """Put a weight on the grid as in eval, and freeze the range at it, for a conversion that rounds it again.

        Args:
            weight: [out, ...].

        Returns:
            The weight on the grid, in its dtype.

        Raises:
            NonFiniteError: NaN or infinity in the weight.
        """
        *_, scale, zero_point = self.final_qparams(weight)
        self.disable_observer()
        self.snapped = True
        return fake_quantize_affine(weight, scale, zero_point, *self.codes).to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantize ``x``.

        Args:
            x: The weight, [out, ...], or an activation of any shape; float32, float16 or bfloat16.

        Returns:
            ``x`` on the grid, same shape and dtype; computed in float32.

        Raises:
            CalibrationError: An activation quantizer is evaluated before it has seen any data.
            NonFiniteError: In training, ``x`` holds NaN or infinity.
        """
        if self._calibration is not None:
            self._calibration.add(x.detach())
            return x
        quantizing, learning = self._flag("fake_quant_enabled"), self.follows
        if x.numel() == 0 or not (quantizing or learning):
            return x
        if learning and torch.compiler.is_compiling():
            return self._compiled(x, quantizing)
        share = quantizing and self.training and self.is_weight and SharedOutput.allowed(x)
        if share:
            earlier = self._shared.find(x, self.log_alpha, learning)
            if earlier is not None:
                return earlier
            share = self._shared.wanted()
        self._depthwise = self.is_weight and is_depthwise(x)
        clip = self._current_range(x)
        if not quantizing:
            return x
        kept = x.detach().clone() if share else None
        out: Tensor = LSCFunction.apply(
            x,
            self.log_alpha,
            clip,
            self._gradient_factor(clip, x.numel(), learning),
            self._settings,
            None if kept is None else SharedInput(kept, self._shared.dropper()),
        )
        if kept is not None:
            self._shared.keep(out, kept, self.log_alpha, learning)
        return out

    def _compiled(self, x: Tensor, quantizing: bool) -> Tensor:
        """The forward pass in training inside torch.compile's graphs, in which the range is one opaque operator."""
        if not quantizing:
            observe_outside(self, x)
            return x
        if self.log_alpha.numel() == 0:
            raise CalibrationError(f"{self.who}: start it from its weight (call initialize) before torch.compile")
        *clip, factor = training_range(x.detach(), self.log_alpha.detach(), self._number)
        out: Tensor = LSCFunction.apply(x, self.log_alpha, ClipRange(*clip), factor, self._settings, None)
        return out

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

    def _gradient_factor(self, clip: ClipRange | NumberRange, elements: int, learning: bool) -> Any:
        """d scale / d log_alpha with LSQ's gradient scale: what log_alpha's gradient is multiplied by.

        A frozen range gets a zero gradient rather than none, for DDP's sake.
        """
        log_alpha = self.log_alpha
        sharing = elements / log_alpha.numel()
        share = float(learning) / math.sqrt(sharing * self._settings.quant_max)
        if isinstance(clip, NumberRange):
            return clip.scale_per_alpha * share * self._alpha_number()
        return clip.scale_per_alpha * share * log_alpha.detach().exp()

    def convert(self, model: fx.GraphModule, observer_node: fx.Node) -> None:
        """Replace a call of this quantizer in a graph by quantize and dequantize operations; torchao calls it.

        Args:
            model: The graph that torchao's ``convert_pt2e``, or torch.ao's decomposed reference, converts.
            observer_node: The call.
        """
        snap_weights(model)  # torch.ao's decomposed reference has weights in layers, and rounds them after this
        insert_quantize_dequantize(self, model, observer_node)

    def extra_repr(self) -> str:
        """Settings in one line."""
        grouped = f", group_size={self.group_size}" if self.group_size else ""
        return f"bits={self.bits}, grid={self.grid}, granularity={self.granularity}{grouped}"
