"""The registry of targets: what can become of a packed model when it is loaded, and whether that can run here."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import fx, nn

from ..errors import QConfigError, UnsupportedLayerError
from ..graph import PartGraph, as_part, graph_of, trace_regions
from ..native import fast_float
from ..spelling import did_you_mean
from ..stage import LayerTarget, set_stage, stage_of
from .choice import choose, decoder_in_float, missing_kernels
from .dequantized import lower_dequantized
from .heap import trim_heap
from .inputs import ActivationQuantizer
from .int4 import lower_int4, why_no_int4_on, why_not_int4
from .kernels.linear import why_not_int8
from .kernels.passes import lower_part
from .kernels.upscaling import lower_upscaling
from .onednn.linear import why_not_onednn
from .onednn.passes import Float32Graph, lower_part_onednn
from .onednn.processor import why_no_onednn
from .packed import PackedIntxTensor
from .portable import why_not_packed
from .record import LayerRecord

Device = torch.device | str
Taken = dict[str, LayerTarget]
"""What became of the layers, by name."""
_LoweredPart = tuple[fx.GraphModule, dict[str, str | None]]
"""A part, and of each of its layers None or why it stayed packed."""


@dataclass(frozen=True)
class Target:
    """A way to run a packed model.

    Attributes:
        name: What users call it.
        device_check: ``(device) -> None`` where some layer can run there, else the reason as a sentence.
        layer_check: ``(module, packed, device, quantizer) -> None`` where that layer can run there, else the reason.
        lower: Lowers a deployed model in place, and returns what each layer was lowered to.
    """

    name: str
    device_check: Callable[[torch.device], str | None]
    layer_check: Callable[[nn.Module, PackedIntxTensor, torch.device, ActivationQuantizer | None], str | None]
    lower: Callable[[nn.Module], Taken]

    def why_not(
        self,
        device: Device = "cpu",
        module: nn.Module | None = None,
        packed: PackedIntxTensor | None = None,
        quantizer: ActivationQuantizer | None = None,
    ) -> str | None:
        """Why this target cannot run here: on a device of this machine, or one layer there.

        Args:
            device: Where the model will run.
            module: A float, fake-quantized or packed layer to ask about; None asks about the device alone.
            packed: Its weight; by default ``module.weight``.
            quantizer: Of its input; None if that stays float.

        Returns:
            None if it can run, else the reason as a sentence. "auto" takes what there is and always can.

        Example:
            >>> get_target("int8").why_not("cpu") is None  # on x86-64 with AVX2, and a compiler
            True
        """
        device = torch.device(device)
        if module is None:
            return self.device_check(device)
        weight = module.weight if packed is None else packed
        if not isinstance(weight, PackedIntxTensor):
            return f"The weight of {type(module).__name__} is a {type(weight).__name__}, not packed codes."
        return self.layer_check(module, weight, device, quantizer)


def get_target(name: str) -> Target:
    """Look a target up.

    Args:
        name: A key of ``TARGETS``.

    Returns:
        The target.

    Raises:
        QConfigError: There is none of that name.

    Example:
        >>> get_target("packed").name
        'packed'
    """
    if name not in TARGETS:
        raise QConfigError(
            f"unknown lowering target {name!r}; choose one of {', '.join(TARGETS)}{did_you_mean(name, TARGETS)}"
        )
    return TARGETS[name]


def auto_target(device: Device = "cpu", model: nn.Module | None = None) -> tuple[str, str | None]:
    """What the target "auto" takes on a device.

    Args:
        device: Where the model will run.
        model: A model with packed weights, since small ones may be faster in float; None for large ones.

    Returns:
        The name of the target, and why it is not "int8", as a sentence; see :func:`~qsam2_ao.deploy.choice.choose`.

    Example:
        >>> auto_target("meta")[0]
        'packed'
    """
    choice = choose(torch.device(device), model)
    return choice.target, choice.reason


def lower_to(model: nn.Module, target: str) -> nn.Module:
    """Lower a deployed model to a target, in place.

    Args:
        model: A deployed model on the device it will run on; "int8" changes its graphs themselves, whoever shares them.
        target: "packed" keeps the weights as they are and computes in float, on any device; "int8" runs whole parts on
            the kernels of its CPU or GPU, with quantized inputs multiplied as integers and attention in bfloat16
            (its products in float32 on x86-64 without AVX512-BF16); "onednn" gives layers with quantized inputs to the
            int8 products that torch has for x86-64 with AVX2, and keeps the rest in float32; "dequantized" computes
            what "packed" does with weights that are dequantized once, which takes the memory of a float model (and
            where the kernels run and bfloat16 is fast, in bfloat16 with theirs between the layers); "int4" gives
            weight-only linear layers to torchao; "auto" is the fastest of them here, with a warning where something
            is missing.

    Returns:
        The model, with a stage whose ``targets`` say of each layer what it runs on, and why where that is not the
        target asked for. It is warned where no layer runs on that.

    Raises:
        QConfigError: An unknown target.
        UnsupportedLayerError: The model was lowered to another target before, or "int8" or "onednn" was asked for and
            this machine or the model's device has no such products.
    """
    targets = get_target(target).lower(model)
    if target != "auto" and targets and all(found != target for found, _ in targets.values()):
        why = next(iter(targets.values())).reason
        # It names the line past load_qsam2 and its decorator.
        warnings.warn(f"no layer runs on the target {target!r}, all stay packed: {why}", stacklevel=4)
    for module in model.modules():
        if isinstance(module, PartGraph):  # lowering has no use for the code of the graph before
            module.complete()
    set_stage(model, replace(stage_of(model), targets=targets))
    trim_heap()
    return model


def _lower_auto(model: nn.Module) -> Taken:
    choice = choose(_device(model), model)
    if choice.warning is not None:
        # It names the line past lower_to, load_qsam2 and its decorator.
        warnings.warn(choice.warning, stacklevel=5)
    if choice.target == "onednn":
        records, slower = stage_of(model).layers, decoder_in_float(model)
        taken = _by_part(model, "onednn", lower_part_onednn, [r for r in records if r.part not in slower])
        in_float = [record for record in records if record.part in slower]
        _dequantize(model, in_float)
        taken |= {record.name: LayerTarget("dequantized", slower[record.part]) for record in in_float}
    else:
        taken = get_target(choice.target).lower(model)
    return {name: LayerTarget(found, why or choice.reason) for name, (found, why) in taken.items()}


def _lower_int8(model: nn.Module) -> Taken:
    if (missing := get_target("int8").why_not(_device(model))) is not None:
        raise UnsupportedLayerError(f'cannot lower the model to int8: {missing} target="auto" takes what there is.')
    return _lower_parts(model)


def _lower_onednn(model: nn.Module) -> Taken:
    if (missing := get_target("onednn").why_not(_device(model))) is not None:
        raise UnsupportedLayerError(f'cannot lower the model to oneDNN: {missing} target="auto" takes what there is.')
    return _by_part(model, "onednn", lower_part_onednn, stage_of(model).layers)


def _lower_packed(model: nn.Module) -> Taken:
    """It is what it should be already."""
    _check_packed(model, stage_of(model).layers)
    return {record.name: LayerTarget("packed", None) for record in stage_of(model).layers}


def _lower_dequantized(model: nn.Module) -> Taken:
    return _dequantize(model, stage_of(model).layers)


def _dequantize(model: nn.Module, records: Sequence[LayerRecord]) -> Taken:
    device = _device(model)
    kernels = missing_kernels(device) is None and fast_float(device) == torch.bfloat16
    for path in dict.fromkeys(record.part for record in records):
        own = [record for record in records if record.part == path]
        _check_packed(model, own)
        for record in own:
            model.set_submodule(record.name, lower_dequantized(model.get_submodule(record.name)))
        graph = graph_of(model.get_submodule(path), compiled=False)
        if kernels:
            model.set_submodule(path, lower_part(graph, _batch_dim(own[0].region), in_place=True)[0])
        elif device.type == "cpu" and fast_float(device) == torch.float32:
            model.set_submodule(path, Float32Graph(graph, graph.graph, compiled=False))
    if kernels and any(record.region == "mask_decoder" for record in records):
        lower_upscaling(cast(SAM2Base, model))
    return {record.name: LayerTarget("dequantized", None) for record in records}


def _lower_int4(model: nn.Module) -> Taken:
    taken: Taken = {}
    _check_packed(model, stage_of(model).layers)
    for record in stage_of(model).layers:
        module: Any = model.get_submodule(record.name)
        packed = module.weight
        reason = _QUANTIZED_INPUT if record.activation is not None else why_not_int4(module, packed, packed.device)
        if reason is None:
            model.set_submodule(record.name, lower_int4(module, packed, packed.device))
        taken[record.name] = LayerTarget("int4" if reason is None else "packed", reason)
    return taken


def _lower_parts(model: nn.Module) -> Taken:
    records = stage_of(model).layers
    taken = _by_part(model, "int8", functools.partial(lower_part, in_place=True), records, compiled=False)
    if any(record.region == "mask_decoder" for record in records):
        lower_upscaling(cast(SAM2Base, model))
    return taken


def _by_part(
    model: nn.Module,
    target: str,
    lower: Callable[[fx.GraphModule, int], _LoweredPart],
    records: Sequence[LayerRecord],
    *,
    compiled: bool = True,
) -> Taken:
    """Layers are folded into each other, so they are chosen part by part."""
    taken: Taken = {}
    for path in dict.fromkeys(record.part for record in records):
        own = [record for record in records if record.part == path]
        _check_packed(model, own)
        graph = graph_of(model.get_submodule(path), compiled=compiled)
        lowered, reasons = lower(graph, _batch_dim(own[0].region))
        model.set_submodule(path, as_part(lowered))
        for record in own:
            reason = reasons[record.layer]
            taken[record.name] = LayerTarget(target if reason is None else "packed", reason)
    return taken


def _why_not_in_float(module: nn.Module, packed: PackedIntxTensor, *_: object) -> str | None:
    return why_not_packed(module, packed)


_QUANTIZED_INPUT = "Its input is quantized, and this target runs weight-only layers."
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("auto", lambda device: None, _why_not_in_float, _lower_auto),
        Target("int8", missing_kernels, why_not_int8, _lower_int8),
        Target("onednn", why_no_onednn, why_not_onednn, _lower_onednn),
        Target("packed", lambda device: None, _why_not_in_float, _lower_packed),
        Target("dequantized", lambda device: None, _why_not_in_float, _lower_dequantized),
        Target(
            "int4",
            why_no_int4_on,
            lambda module, packed, device, quantizer: (
                _QUANTIZED_INPUT if quantizer is not None else why_not_int4(module, packed, device)
            ),
            _lower_int4,
        ),
    )
}
"""What ``load_qsam2`` takes, by name."""


def lower_float(model: SAM2Base) -> SAM2Base:
    """Give a float model the attention, the layer norms and the layout that a quantized one is lowered to, in place.

    Its weights become bfloat16, so that it computes what bfloat16 autocast computes. It cannot be saved any more.
    On x86-64 CPUs without AVX512-BF16, where bfloat16 is emulated, a model in float32 is faster.

    Args:
        model: A float model in eval mode, on the device it will run on.

    Returns:
        The model.

    Raises:
        UnsupportedLayerError: The model's device has no kernels.
        GraphTraceError: A part is of a class that the sam2 package does not have.

    Example:
        >>> predictor = SAM2ImagePredictor(lower_float(model))
    """
    if (missing := get_target("int8").why_not(_device(model))) is not None:
        raise UnsupportedLayerError(f"cannot lower a float model: {missing}")
    for part in trace_regions(model):
        graph = graph_of(model.get_submodule(part.path), compiled=False)
        lowered, _ = lower_part(graph, _batch_dim(part.region), in_place=True)
        model.set_submodule(part.path, lowered)
    lower_upscaling(model)
    return model


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _batch_dim(region: str) -> int:
    """Memory attention takes and gives ``[tokens, samples, channels]``."""
    return 1 if region == "memory_attention" else 0


def _check_packed(model: nn.Module, records: Sequence[LayerRecord]) -> None:
    for record in records:
        weight = getattr(model.get_submodule(record.name), "weight", None)
        if not isinstance(weight, PackedIntxTensor):
            raise UnsupportedLayerError(
                f"the weight of {record.name} is a {type(weight).__name__}, not packed codes: load the model "
                "again to lower it to another target"
            )
