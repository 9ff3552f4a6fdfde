"""LSC, learnable statistical clipping: the fake-quantizer of weights and activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase as AOFakeQuantizeBase
from torchao.quantization.pt2e import FakeQuantizeBase as PT2EFakeQuantizeBase

from ..errors import CalibrationError, NonFiniteError, QConfigError
from .flags import CachedFlags, FiniteCheck, non_finite
from .function import LSCFunction, Settings
from .grids import ClipRange, Grid, RangeStats, activation_grid, weight_grid
from .host import LARGEST_LOG_ALPHA, NumberRange, clip_numbers, move_averages, number_statistics, on_host
from .mse import search_alpha
from .sampling import CalibrationSample, even_sample
from .shared import SharedOutput, recomputing
from .statistics import (
    check_granularity,
    hold,
    merge_across_ranks,
    tensor_statistics,
    weight_statistics,
    world_size,
)

_STATISTICS = ("mean", "std", "low", "high")
_RUNNING = (*_STATISTICS, "alpha_bar")
_LAZY = ("log_alpha", *_RUNNING)


class LSCFakeQuantize(AOFakeQuantizeBase, PT2EFakeQuantizeBase):
    """Fake-quantize in the clip range mean ± alpha * std with a learned alpha (Q-SAM2, arXiv 2506.09782).

    The learned parameter is ``log_alpha``, alpha = exp(log_alpha): always positive, and a step of an
    optimizer changes alpha by a relative amount. Exclude it from weight decay. The forward pass uses
    ``alpha_bar``, the running average of alpha, whose gradient goes straight to alpha.

    Weights: the statistics are those of the tensor passed in, in training and in eval, and the buffers cache
    the last ones, so that :meth:`calculate_qparams` after a forward gives what that forward used. Their shape
    follows the weight: call :meth:`initialize` before making an optimizer. A state dict sizes a module that
    has no shape yet.

    Activations: per tensor, running averages of mean, deviation and extremes, started (with alpha) by
    :meth:`calibrating`, or else by the first training batch.

    Switches as in torch.ao: ``disable_fake_quant`` passes the input through, ``disable_observer`` freezes the
    ranges (statistics of weights and activations, and alpha). In eval mode nothing is learned. In the
    backward recomputation of activation checkpointing no statistic is updated a second time. With
    torch.distributed, the activation statistics are those of all ranks' batches.

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

    Raises:
        QConfigError: Unknown bits, grid, granularity or momentum.

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
    ) -> None:
        super().__init__()
        granularity = granularity or ("channel" if is_weight else "tensor")
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
        self.bits = bits
        self.is_weight = is_weight
        self.granularity = granularity
        self.group_size = group_size
        self.grid = self._grid.name
        self.quant_min = self._grid.quant_min
        self.quant_max = self._grid.quant_max
        self._settings = Settings(self.quant_min, self.quant_max, granularity, group_size)
        self.momentum = momentum
        self.stats_momentum = stats_momentum
        self._shares = (*[1 - stats_momentum] * len(_STATISTICS), 1 - momentum)
        self.name = name
        # What torch.ao's FX mode looks at.
        self.dtype = torch.qint8 if is_weight else torch.quint8
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
        self._reset_transients()

    # --- state -------------------------------------------------------------------------------------------

    def _reset_transients(self) -> None:
        self._flags = CachedFlags()
        self._check_finite = FiniteCheck()
        self._shared = SharedOutput()
        self._calibration: CalibrationSample | None = None

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_flags", "_check_finite", "_shared", "_calibration")
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
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LSCFakeQuantize:
        # Ranges stay float32 when the model is cast to a shorter type.
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved.float() if tensor.is_floating_point() else moved

        self._shared.drop()
        return super()._apply(keep_float32, recurse)

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Switch fake quantization on or off."""
        super().enable_fake_quant(enabled)
        self._flag("fake_quant_enabled")

    def enable_observer(self, enabled: bool = True) -> None:
        """Let the ranges follow the data and alpha, or freeze them."""
        super().enable_observer(enabled)
        self._flag("observer_enabled")

    def _flag(self, key: str) -> bool:
        return self._flags.read(key, cast(Tensor, self._buffers[key]))

    @property
    def is_initialized(self) -> bool:
        """Whether the range has been started, by data, by :meth:`initialize` or by a state dict."""
        return self._flag("initialized")

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
            x: The weight, [out, ...], or a batch of the activation.
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
            self._start(merge_across_ranks(stats, x.numel()) if world_size() > 1 else stats, even_sample(x))

    init_from = initialize

    def _start(self, stats: RangeStats, sample: Tensor, gram: Tensor | None = None) -> None:
        if not all(bool(torch.isfinite(value).all()) for value in stats):
            raise NonFiniteError(f"{self.who}: cannot start from a tensor with NaN or infinite values")
        alpha = search_alpha(sample, stats, self._grid, self.granularity, self.group_size, gram)
        if not self.is_weight and world_size() > 1:
            # Each rank searched on its own sample: agree on the mean of the logarithms.
            log_alpha = alpha.log()
            torch.distributed.all_reduce(log_alpha)
            alpha = (log_alpha / world_size()).exp()
        values = {"log_alpha": alpha.log(), "alpha_bar": alpha, **stats._asdict()}
        for key, value in values.items():
            current = getattr(self, key)
            if current.shape == value.shape:
                current.copy_(value)
            else:
                current.data = value.to(device=current.device, dtype=current.dtype).clone()
        self.initialized.fill_(1)
        self._flag("initialized")

    @torch.no_grad()
    def keep_scale(self, weight: Tensor) -> None:
        """Let the range follow another weight from here on, with the scale and zero point that it has now.

        A weight that was rounded in the range keeps its codes, also where it does not reach the ends of the range: that
        far the range is then allowed beyond the weight's extremes, and its centre keeps its distance from the mean.

        Args:
            weight: The weight in place of the one that the range was started from, of its shape.
        """
        scale, zero_point = self.calculate_qparams()
        half = scale * (self._grid.steps / 2)
        middle = (self.quant_min + self.quant_max) / 2
        centre = torch.zeros_like(scale) if self._grid.zero_centred else (middle - zero_point) * scale
        self.held = self.held.new_zeros(2, 0)
        self.held = torch.stack([centre - self._weight_statistics(weight).mean, half])
        stats = self._weight_statistics(weight)
        self._store(stats)
        alpha = torch.where(stats.std > 0, half / stats.std, self.alpha_bar)
        self.log_alpha.copy_(alpha.log())
        self.alpha_bar.copy_(alpha)

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
        if collected.counts:
            with torch.no_grad():
                self._start(collected.statistics(), torch.cat(collected.samples))

    # --- ranges ------------------------------------------------------------------------------------------

    def _weight_statistics(self, weight: Tensor) -> RangeStats:
        stats = weight_statistics(weight, self.granularity, self.group_size, zero_centred=self._grid.zero_centred)
        return stats if self.held.numel() == 0 else hold(stats, *self.held)

    def _store(self, stats: RangeStats) -> None:
        torch._foreach_copy_([getattr(self, key) for key in _STATISTICS], list(stats))

    def _current_range(self, x: Tensor) -> ClipRange | NumberRange:
        """Clip range for ``x``, after the statistics have been brought up to date as the mode asks for."""
        follows = self._flag("observer_enabled")
        learns = follows and self.training and not recomputing()
        if not self.is_initialized:
            if not self.is_weight and not (self.training and follows):
                raise CalibrationError(
                    f"{self.who}: no range yet; run calibration data through the prepared model "
                    "(calibrate_activations) or a training step before evaluating it"
                )
            self.initialize(x)
        elif not self.is_weight:
            if learns:
                self._average(x)
        elif follows:
            with torch.no_grad():
                self._store(self._weight_statistics(x))
                if learns:
                    # The deviation is finite just when all weights are.
                    self._check_finite((self.std,), self.who)
                    self.alpha_bar.lerp_(self.log_alpha.exp(), 1 - self.momentum)
        return self._range()

    def _range(self) -> ClipRange | NumberRange:
        """Clip range of the stored statistics and alpha_bar: in Python numbers for activations on the CPU."""
        if self.is_weight or not on_host(self.mean):
            return self._grid.clip_range(self._stats, self.alpha_bar)
        mean, std, low, high, alpha = (average.item() for average in self._averages)
        if not math.isfinite(mean + std + low + high + alpha):
            raise NonFiniteError(f"{self.who}: its learned range is not finite; training has diverged")
        return clip_numbers(self._grid, mean, std, low, high, alpha)

    @property
    def _averages(self) -> list[Tensor]:
        # Past torch's attribute lookup, which takes longer than what is done with them.
        return [self._buffers[key] for key in _RUNNING]  # type: ignore[misc]

    @torch.no_grad()
    def _average(self, x: Tensor) -> None:
        """Take a batch into the running averages of an activation's statistics, and alpha into alpha_bar."""
        averages, shares = self._averages, self._shares
        distributed = world_size() > 1
        if on_host(x) and not distributed:
            stats = number_statistics(x)
            if not math.isfinite(sum(stats)):
                raise non_finite(self.who)
            move_averages(averages, (*stats, self._alpha_number()), shares)
            return
        stats_ = tensor_statistics(x)
        if distributed:
            stats_ = merge_across_ranks(stats_, x.numel())
        # On the CPU the batch is judged before it is averaged in; elsewhere the running averages, later.
        self._check_finite(self._stats if stats_.mean.is_cuda else stats_, self.who)
        for average, now, share in zip(averages, (*stats_, self.log_alpha.exp()), shares, strict=True):
            average.lerp_(now, share)

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

    @torch.no_grad()
    def calculate_qparams(self, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the last forward, from the stored statistics and alpha_bar.

        Args:
            **kwargs: None are used; torch.ao's signature.

        Returns:
            Scale and zero point, float32, shape [1], [out] or [out, n_groups].

        Raises:
            CalibrationError: The range was never started.
            NonFiniteError: The stored state is not finite.
        """
        if not self.is_initialized:
            raise CalibrationError(f"{self.who}: no range yet; calibrate or train first")
        scale, zero_point = self._tensors(self._range())
        if not bool(torch.isfinite(scale).all() & torch.isfinite(zero_point).all()):
            raise NonFiniteError(f"{self.who}: its learned range is not finite; training has diverged")
        return scale, zero_point

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
        quantizing = self._flag("fake_quant_enabled")
        learning = self.training and self._flag("observer_enabled")
        if x.numel() == 0 or not (quantizing or learning):
            return x
        share = quantizing and self.training and self.is_weight and SharedOutput.allowed(x)
        if share:
            earlier = self._shared.find(x, self.log_alpha, learning)
            if earlier is not None:
                return earlier
        clip = self._current_range(x)
        if not quantizing:
            return x
        out: Tensor = LSCFunction.apply(
            x,
            self.log_alpha,
            clip,
            self._gradient_factor(clip, x.numel(), learning),
            self._settings,
            self._shared.dropper() if share else None,
        )
        if share:
            self._shared.keep(out, x, self.log_alpha, learning)
        return out

    def _gradient_factor(self, clip: ClipRange | NumberRange, elements: int, learning: bool) -> Any:
        """d scale / d log_alpha with LSQ's gradient scale: what log_alpha's gradient is multiplied by.

        A frozen range gets a zero gradient rather than none, for DDP's sake.
        """
        log_alpha = self.log_alpha
        sharing = elements / log_alpha.numel()
        share = float(learning) / math.sqrt(sharing * self.quant_max)
        if isinstance(clip, NumberRange):
            return clip.scale_per_alpha * share * self._alpha_number()
        return clip.scale_per_alpha * share * log_alpha.detach().exp()

    def extra_repr(self) -> str:
        """Settings in one line."""
        grouped = f", group_size={self.group_size}" if self.group_size else ""
        return f"bits={self.bits}, grid={self.grid}, granularity={self.granularity}{grouped}"
