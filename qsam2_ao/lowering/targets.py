"""The registry of lowering targets: what can become of a packed weight when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import QConfigError, UnsupportedLayerError
from ..tensors.packed import PackedIntxTensor
from .int8_graph import lower_part
from .packed import lower_packed, unsupported_reason
from .torchao_int4 import int4_support, lower_int4

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


def get_target(name: str) -> Target:
    """Look a lowering target up.

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
        raise QConfigError(f"unknown lowering target {name!r}; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


def lower_to(model: nn.Module, target: str) -> nn.Module:
    """Lower the packed layers of a deployed model to a target, in place, where it supports them.

    Layers whose input is quantized keep the packed target: the others are for weight-only quantization.

    Args:
        model: A deployed model (with ``qsam2_plan``) on the device it will run on.
        target: A key of ``TARGETS``.

    Returns:
        The model, with ``qsam2_targets``: layer name -> (target, reason); the reason is None where the target
        asked for was taken, and else says why it was not.

    Raises:
        QConfigError: An unknown target.
        UnsupportedLayerError: The model was lowered to another target before.
    """
    if target == "int8":
        return _lower_parts(model)
    chosen = get_target(target)
    deployed: Any = model
    taken: dict[str, tuple[str, str | None]] = {}
    for plan in deployed.qsam2_plan:
        path = f"{plan.part}.{plan.layer}"
        module: Any = model.get_submodule(path)
        packed = module.weight
        if not isinstance(packed, PackedIntxTensor):
            raise UnsupportedLayerError(
                f"the weight of {plan.name} is a {type(packed).__name__}, not packed codes: load the model "
                f"again to lower it to {target!r}"
            )
        reason = (
            "Its input is quantized, and this target runs weight-only layers."
            if plan.activation is not None and target != "packed"
            else chosen.support(module, packed, packed.device)
        )
        if reason is None and target != "packed":
            model.set_submodule(path, chosen.lower(module, packed, packed.device))
        taken[plan.name] = (target if reason is None else "packed", reason)
    deployed.qsam2_targets = taken
    return model


def _lower_parts(model: nn.Module) -> nn.Module:
    """The int8 kernels fold layers into each other, so they are chosen part by part."""
    deployed: Any = model
    taken: dict[str, tuple[str, str | None]] = {}
    for path in dict.fromkeys(plan.part for plan in deployed.qsam2_plan):
        lowered, reasons = lower_part(model.get_submodule(path))  # type: ignore[arg-type]
        model.set_submodule(path, lowered)
        for plan in deployed.qsam2_plan:
            if plan.part == path:
                reason = reasons[plan.layer]
                taken[plan.name] = ("int8" if reason is None else "packed", reason)
    deployed.qsam2_targets = taken
    return model
