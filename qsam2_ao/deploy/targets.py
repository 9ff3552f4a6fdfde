"""The registry of lowering targets: what can become of a packed weight when a model is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import nn

from ..errors import QConfigError, UnsupportedLayerError
from ..graph import graph_of, trace_regions
from ..native import load_kernels, unavailable_reason
from .int4 import int4_support, lower_int4
from .kernels.passes import lower_part
from .kernels.upscaling import lower_upscaling
from .packed import PackedIntxTensor
from .portable import lower_packed, unsupported_reason

Device = torch.device | str | None


@dataclass(frozen=True)
class Target:
    """A way to run a packed weight.

    Attributes:
        name: What users call it.
        support: ``(module, packed, device) -> None`` if supported, else the reason as a sentence.
        lower: ``(module, packed, device) -> nn.Module``, the deployed layer.
    """

    name: str
    support: Callable[[nn.Module, PackedIntxTensor, Device], str | None]
    lower: Callable[[nn.Module, PackedIntxTensor, Device], nn.Module]


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("packed", lambda module, packed, device: unsupported_reason(module, packed), lower_packed),
        Target("int4", int4_support, lower_int4),
    )
}


TARGET_NAMES = ("auto", "int8", *TARGETS)
"""What ``load_qsam2`` takes."""


def get_target(name: str) -> Target:
    """Look a target up that lowers single layers.

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
        raise QConfigError(f"unknown lowering target {name!r}; choose one of {', '.join(TARGET_NAMES)}")
    return TARGETS[name]


def lower_to(model: nn.Module, target: str) -> nn.Module:
    """Lower a deployed model to a target, in place.

    Args:
        model: A deployed model (with ``qsam2_plan``) on the device it will run on.
        target: "packed" keeps the weights as they are and computes in float, on any device; "int8" runs whole parts on
            the kernels of its CPU or GPU, with quantized inputs multiplied as integers and attention in bfloat16
            (its products in float32 on x86-64 without AVX512-BF16); "int4" gives weight-only linear layers to torchao;
            "auto" is "int8" where the kernels run, else "packed", with a warning that says why.

    Returns:
        The model, with ``qsam2_targets``: layer name -> (target, reason); the reason is None where the target
        asked for was taken, and else says why it was not.

    Raises:
        QConfigError: An unknown target.
        UnsupportedLayerError: The model was lowered to another target before, or "int8" was asked for and this
            machine or the model's device has no kernels.
    """
    missing = None
    if target in ("auto", "int8"):
        missing = _missing_kernels(next(model.parameters()).device)
        if missing is None:
            return _lower_parts(model)
        if target == "int8":
            raise UnsupportedLayerError(f'cannot lower the model to int8: {missing} target="auto" takes what there is.')
        # Past load_qsam2 and its decorator.
        warnings.warn(f"the model computes in float, which is slower: {missing}", stacklevel=4)
        target = "packed"
    chosen = get_target(target)
    deployed: Any = model
    taken: dict[str, tuple[str, str | None]] = {}
    _check_packed(model, deployed.qsam2_plan)
    for plan in deployed.qsam2_plan:
        module: Any = model.get_submodule(plan.name)
        packed = module.weight
        reason = (
            "Its input is quantized, and this target runs weight-only layers."
            if plan.activation is not None and target != "packed"
            else chosen.support(module, packed, packed.device)
        )
        if reason is None and target != "packed":
            model.set_submodule(plan.name, chosen.lower(module, packed, packed.device))
        taken[plan.name] = (target if reason is None else "packed", reason or missing)
    deployed.qsam2_targets = taken
    return model


def _missing_kernels(device: torch.device) -> str | None:
    """Load the kernels; why that cannot be done, as a sentence."""
    if (reason := unavailable_reason(device)) is None:
        try:
            load_kernels(device)
        except UnsupportedLayerError as error:
            return str(error)
    return reason


def _lower_parts(model: nn.Module) -> nn.Module:
    """The int8 kernels fold layers into each other, so they are chosen part by part."""
    deployed: Any = model
    taken: dict[str, tuple[str, str | None]] = {}
    for path in dict.fromkeys(plan.part for plan in deployed.qsam2_plan):
        plans = [plan for plan in deployed.qsam2_plan if plan.part == path]
        _check_packed(model, plans)
        lowered, reasons = lower_part(graph_of(model.get_submodule(path)), _batch_dim(plans[0].region))
        model.set_submodule(path, lowered)
        for plan in plans:
            reason = reasons[plan.layer]
            taken[plan.name] = ("int8" if reason is None else "packed", reason)
    if any(plan.region == "mask_decoder" for plan in deployed.qsam2_plan):
        lower_upscaling(deployed)
    deployed.qsam2_targets = taken
    return model


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
        >>> predictor = SAM2ImagePredictor(lower_float(build_official("sam2.1-t", "sam2.1_hiera_tiny.pt")))
    """
    if (missing := _missing_kernels(next(model.parameters()).device)) is not None:
        raise UnsupportedLayerError(f"cannot lower a float model: {missing}")
    for part in trace_regions(model):
        lowered, _ = lower_part(graph_of(model.get_submodule(part.path)), _batch_dim(part.region))
        model.set_submodule(part.path, lowered)
    lower_upscaling(model)
    return model


def _batch_dim(region: str) -> int:
    """Memory attention takes and gives ``[tokens, samples, channels]``."""
    return 1 if region == "memory_attention" else 0


def _check_packed(model: nn.Module, plans: list[Any]) -> None:
    for plan in plans:
        weight = getattr(model.get_submodule(plan.name), "weight", None)
        if not isinstance(weight, PackedIntxTensor):
            raise UnsupportedLayerError(
                f"the weight of {plan.name} is a {type(weight).__name__}, not packed codes: load the model "
                "again to lower it to another target"
            )
