"""LSC, learnable statistical clipping: the fake-quantizer of weights and activations."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import FakeQuantizeBase as PT2EFakeQuantizeBase

from ..errors import CalibrationError, NonFiniteError, QConfigError
from .affine import broadcast_qparam, fake_quantize_affine
from .compiled import observe_outside, training_range
from .constructor import QuantizerConstructor, check_spec, is_per_tensor
from .grids import ClipRange, activation_grid, weight_grid
from .integers import integer_codes, integer_range
from .lsc_function import CachedWeight, LSCFunction, LSCSettings
from .lsc_training import LSCTraining
from .pt2e import insert_quantize_dequantize
from .snapping import snap_weights
from .statistics import check_granularity
from .torch_ao import check_conversion, is_depthwise
from .weight_cache import WeightCache


class LSCFakeQuantize(LSCTraining, PT2EFakeQuantizeBase):
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
    all ranges of the optimizer. Where an activation's range reaches all of its values, a gradient that would widen it
    further is dropped before the step. Without such an optimizer a step ends where alpha has changed, ranks are not
    merged, and no gradient is dropped. State dicts are complete between steps; a deep copy is so at any time.

    Switches as in torch.ao: ``disable_fake_quant`` passes the input through, ``disable_observer`` freezes the
    ranges (statistics of weights and activations, and alpha). In eval mode nothing is learned.

    torch.compile: training learns the same ranges as in eager mode, without a break in the graph, once the weights'
    quantizers are started; with ``disable_fake_quant`` an observing quantizer breaks it.

    Args:
        bits: 2 to 8.
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
        self._grid = weight_grid(grid, bits) if is_weight else activation_grid(bits)
        check_spec(self._grid, granularity, dtype, quant_min, quant_max, qscheme, is_dynamic)
        self.code_dtype = dtype or (torch.int8 if is_weight else torch.uint8)
        self.bits = bits
        self.is_weight = is_weight
        self.granularity = granularity
        self.group_size = group_size
        self.grid = self._grid.name
        codes = (self._grid.quant_min, self._grid.quant_max)
        self._settings = LSCSettings(*codes, granularity, group_size)
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
        self._make_range((factory_kwargs or {}).get("device"))

    @classmethod
    def with_args(cls, **kwargs: Any) -> QuantizerConstructor:
        """A constructor with these arguments, for torch.ao's ``QConfig`` or torchao's ``QuantizationSpec``."""
        return QuantizerConstructor(functools.partial(cls, **kwargs))

    init_from = LSCTraining.initialize

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
        share = quantizing and self.training and self.is_weight and WeightCache.allowed(x)
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
            None if kept is None else CachedWeight(kept, self._shared.dropper()),
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
