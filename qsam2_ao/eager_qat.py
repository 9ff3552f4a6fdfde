"""LSC in torchao's eager API for quantization-aware training: any module's layers, without a graph.

``quantize_`` with :class:`LSCQATConfig` makes the layers fake-quantize; after training, with
``LSCQATConfig(step="convert")``, their weights are packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization import register_quantize_module_handler
from torchao.quantization.qat import FakeQuantizeConfigBase, FakeQuantizedLinear, FakeQuantizerBase, QATConfig, QATStep

from .deploy.inputs import ActivationQuantizer
from .deploy.packed import PackedIntxTensor
from .errors import QConfigError, UnsupportedLayerError
from .models.wrappers import check_plain_weight
from .quantizers import LSCFakeQuantize, quantize_affine


@dataclass
class LSCWeightConfig(FakeQuantizeConfigBase):
    """How a weight is fake-quantized; the fields are arguments of ``LSCFakeQuantize``.

    Attributes:
        bits: 2 to 8.
        granularity: "channel", "tensor" or "group" of the scales.
        group_size: Inputs per scale, for "group".
        grid: "midrise", "symmetric", "asymmetric" or "mean"; None for the bit width's default.
        momentum: Of the averaged clipping multiplier.

    Raises:
        QConfigError: A setting out of range.
    """

    bits: int = 4
    granularity: str = "channel"
    group_size: int | None = None
    grid: str | None = None
    momentum: float = 0.9

    def __post_init__(self) -> None:
        LSCFakeQuantize(is_weight=True, **vars(self))

    def __str__(self) -> str:
        # torchao puts a config that it does not know into its error message.
        return f"{self!r} (for qsam2_ao's LSCQATConfig, not for torchao's QATConfig)"


@dataclass
class LSCActivationConfig(FakeQuantizeConfigBase):
    """How a layer's input is fake-quantized, with one scale; the fields are arguments of ``LSCFakeQuantize``.

    Attributes:
        bits: 2 to 8.
        momentum: Of the averaged clipping multiplier.
        stats_momentum: Of the running statistics.

    Raises:
        QConfigError: A setting out of range.
    """

    bits: int = 8
    momentum: float = 0.9
    stats_momentum: float = 0.95

    def __post_init__(self) -> None:
        LSCFakeQuantize(**vars(self))

    __str__ = LSCWeightConfig.__str__


class LSCQATConfig(QATConfig):
    """torchao's ``QATConfig`` with weights and inputs quantized by learnable statistical clipping.

    ``QATConfig`` itself makes its fake-quantizers from a fixed list of configs, so ours come in a class of their own.
    The arguments, steps and rules are those of ``QATConfig``, without ``base_config``: what is learned are the ranges
    that "convert" packs the weights with, in as many bits as they have.

    ``quantize_`` changes ``nn.Linear`` modules; with ``filter_fn=is_linear_or_conv``, in both steps, ``nn.Conv2d``
    too. A prepared model's input ranges start from :func:`~qsam2_ao.quantizers.calibrating` or from its first batch.

    Args:
        base_config: Only there because ``QATConfig`` has it.
        activation_config: Of the layers' inputs; None keeps them in float.
        weight_config: Of the weights; None keeps them in float.
        step: "prepare" or "convert"; the latter without the two others.

    Raises:
        QConfigError: A config that is not ours, or a ``base_config``.
        ValueError: From ``QATConfig``: an unknown step, configs in the convert step, or none in the prepare step.

    Example:
        >>> recipe = dict(activation_config=LSCActivationConfig(8), weight_config=LSCWeightConfig(4))
        >>> quantize_(network, LSCQATConfig(**recipe, step="prepare"))
        >>> loss = network(inputs).square().mean()  # and train it
        >>> quantize_(network.eval(), LSCQATConfig(step="convert"))
    """

    def __init__(
        self,
        base_config: None = None,
        activation_config: LSCActivationConfig | None = None,
        weight_config: LSCWeightConfig | None = None,
        *,
        step: str = "prepare",
    ) -> None:
        if base_config is not None:
            raise QConfigError(
                "LSC's weights are packed with the ranges that training learned; leave base_config out of LSCQATConfig"
            )
        for name, config, kind in (
            ("activation_config", activation_config, LSCActivationConfig),
            ("weight_config", weight_config, LSCWeightConfig),
        ):
            if not isinstance(config, kind | None):
                raise QConfigError(f"{name} of LSCQATConfig must be a {kind.__name__}, not {type(config).__name__}")
        super().__init__(None, activation_config, weight_config, step=step)


class LSCFakeQuantizer(LSCFakeQuantize, FakeQuantizerBase):
    """LSC's fake-quantizer as torchao's eager API knows them: with its ``config``, and ``enabled``.

    Args:
        config: A :class:`LSCWeightConfig` or :class:`LSCActivationConfig`.
        name: Of the layer, for error messages.
        device: Of its state.
    """

    def __init__(
        self, config: LSCWeightConfig | LSCActivationConfig, name: str = "", device: torch.device | None = None
    ) -> None:
        is_weight = isinstance(config, LSCWeightConfig)
        super().__init__(**vars(config), is_weight=is_weight, name=name, factory_kwargs={"device": device})
        self.config = config

    @property
    def enabled(self) -> bool:
        """Whether it fake-quantizes; else it passes its input through."""
        return self._flag("fake_quant_enabled")

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.enable_fake_quant(value)


class LSCLinear(FakeQuantizedLinear):
    """A linear layer whose weight and input are fake-quantized by LSC."""

    def to_linear(self) -> nn.Linear:
        """Refused: torchao's own convert step would put the weight on another grid than it was trained on."""
        raise QConfigError(
            "layers prepared with LSCQATConfig are converted by quantize_(model, LSCQATConfig(step='convert')), not by "
            "torchao's QATConfig"
        )


class LSCConv2d(nn.Conv2d):
    """A convolution whose weight and input are fake-quantized by LSC."""

    activation_fake_quantizer: LSCFakeQuantizer | None
    weight_fake_quantizer: LSCFakeQuantizer | None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: [N, in, H, W].
        """
        if self.activation_fake_quantizer is not None:
            x = self.activation_fake_quantizer(x)
        weight = self.weight if self.weight_fake_quantizer is None else self.weight_fake_quantizer(self.weight)
        return self._conv_forward(x, weight, self.bias)


class QuantizedInputLinear(nn.Linear):
    """A converted linear layer that quantizes its input."""

    input_quantizer: ActivationQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """Quantize the input, then multiply.

        Args:
            input: [..., in_features].
        """
        return super().forward(self.input_quantizer(input))


class QuantizedInputConv2d(nn.Conv2d):
    """A converted convolution that quantizes its input."""

    input_quantizer: ActivationQuantizer

    def forward(self, input: Tensor) -> Tensor:
        """Quantize the input, then convolve.

        Args:
            input: [N, in, H, W].
        """
        return super().forward(self.input_quantizer(input))


_PREPARED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LSCLinear, nn.Conv2d: LSCConv2d}
_QUANTIZED_INPUT: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QuantizedInputLinear,
    nn.Conv2d: QuantizedInputConv2d,
}


def is_linear_or_conv(module: nn.Module, name: str = "") -> bool:
    """A ``filter_fn`` for ``quantize_``: linear layers and 2-d convolutions, float or prepared.

    Args:
        module: A module.
        name: Its path.
    """
    return type(module) in _PREPARED or type(module) in _PREPARED.values()


def _computes_itself(layer: nn.Module, args: tuple[Any, ...]) -> None:
    """A hook that keeps torch's encoder layers from computing with a layer's weight and never calling the layer.

    Outside training ``nn.TransformerEncoderLayer`` does so, unless one of its modules has a hook.
    """
    if args and isinstance(args[0], Tensor) and args[0].is_nested:
        raise UnsupportedLayerError(
            f"{_describe(layer)} got a nested tensor, as nn.TransformerEncoder makes of padded inputs outside "
            "training; call torch.backends.mha.set_fastpath_enabled(False) first"
        )


def _keep_hook(layer: nn.Module) -> None:
    if _computes_itself not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(_computes_itself)


def _remove_hook(layer: nn.Module) -> None:
    for number in [number for number, hook in layer._forward_pre_hooks.items() if hook is _computes_itself]:
        del layer._forward_pre_hooks[number]


@register_quantize_module_handler(LSCQATConfig)
def _transform(module: nn.Module, config: LSCQATConfig) -> nn.Module:
    """What ``quantize_`` does to each module; in place, so that a module with several names stays one."""
    return _convert(module) if config.step == QATStep.CONVERT else _prepare(module, config)


def _prepare(module: Any, config: LSCQATConfig) -> nn.Module:
    configs = {"activation": config.activation_config, "weight": config.weight_config}
    if type(module) in _PREPARED.values():
        before = {kind: getattr(getattr(module, f"{kind}_fake_quantizer"), "config", None) for kind in configs}
        if before != configs:
            raise QConfigError(f"{_describe(module)} is prepared already, with {before}; start from the float model")
        return module
    if type(module) not in _PREPARED:
        raise UnsupportedLayerError(
            f"LSCQATConfig prepares nn.Linear and nn.Conv2d, not {type(module).__name__}; leave it out with "
            "quantize_'s filter_fn"
        )
    name = _describe(module)
    check_plain_weight(name, module)
    device = module.weight.device
    quantizers = {kind: None if c is None else LSCFakeQuantizer(c, name, device) for kind, c in configs.items()}
    if quantizers["weight"] is not None and device.type != "meta":
        quantizers["weight"].initialize(module.weight)
    module.__class__ = _PREPARED[type(module)]
    for kind, quantizer in quantizers.items():
        setattr(module, f"{kind}_fake_quantizer", None if quantizer is None else quantizer.train(module.training))
    _keep_hook(module)
    return module


@torch.no_grad()
def _convert(module: Any) -> nn.Module:
    float_class = {prepared: float_class for float_class, prepared in _PREPARED.items()}.get(type(module))
    if float_class is None:
        return module
    weight_quantizer, input_quantizer = module.weight_fake_quantizer, module.activation_fake_quantizer
    if input_quantizer is not None:  # first, so that an error leaves the layer as it was
        scale, zero_point = input_quantizer.qparams()
    if weight_quantizer is not None:
        packed = _pack(weight_quantizer, module.weight)
        module.weight = nn.Parameter(packed, requires_grad=False)
    del module.weight_fake_quantizer, module.activation_fake_quantizer
    module.__class__ = float_class
    if input_quantizer is not None:
        grid = input_quantizer._grid
        module.__class__ = _QUANTIZED_INPUT[float_class]
        module.input_quantizer = ActivationQuantizer(grid.quant_min, grid.quant_max, scale, zero_point)
        _keep_hook(module)
    else:  # packed weights are known to torch's encoder layers as none of theirs
        _remove_hook(module)
    return module


def _pack(quantizer: LSCFakeQuantizer, weight: Tensor) -> PackedIntxTensor:
    """The weight in the codes that the fake-quantizer gives it in eval."""
    scale, zero_point, wide_scale, wide_zero = quantizer.final_qparams(weight)
    grid = quantizer._grid
    codes = quantize_affine(weight, wide_scale, wide_zero, grid.quant_min, grid.quant_max) - grid.quant_min
    return PackedIntxTensor.from_codes(
        codes.to(torch.uint8), scale, zero_point - grid.quant_min, grid.bits, quantizer.group_size, weight.dtype
    )


def _describe(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"
