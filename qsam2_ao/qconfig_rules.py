"""Whether the rules of QConfigMappings select anything in a model: none is dropped without a word."""

from __future__ import annotations

import difflib
import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sam2.modeling.sam2_base import SAM2Base
from torch import nn
from torch.ao.quantization import QConfig, QConfigMapping, get_default_qat_qconfig_mapping

from .backend_config import QAT_MODULES
from .errors import QConfigError
from .graph import find_parts
from .qconfig import FIRST_AND_LAST_LAYERS

logger = logging.getLogger(__name__)

_QUANTIZED = " and ".join(f"nn.{layer.__name__}" for layer in QAT_MODULES)


def check_rules(recipe: Mapping[str, QConfigMapping], model: SAM2Base) -> None:
    """Refuse rules that select no layer of the model, and kinds of rules that this package does not read.

    A rule counts as used if it selects a layer in any of the regions whose mappings have it, so that one mapping can
    serve several regions. A rule without a QConfig (None) is also right for whatever stays in float anyway.
    ``FIRST_AND_LAST_LAYERS`` name layers that not every SAM2 has, and torch.ao's default mapping operations that this
    package keeps in float: the former are no error, and the latter are logged.

    Args:
        recipe: Region -> mapping.
        model: A float model of the ``SAM2Base`` family.

    Raises:
        QConfigError: Naming the rule, and what to choose instead.

    Example:
        >>> check_rules(preset_qconfig("w4a8"), model)
    """
    regions: dict[tuple[str, Any, bool], list[str]] = {}
    unused: set[str] = set()
    for region, mapping in recipe.items():
        _check_values(region, mapping)
        for kind, key, qconfig in _rules(mapping):
            if kind == "object_type" and key not in QAT_MODULES and _has_defaults_of_torch_ao(mapping):
                unused.add(_type_name(key))
            elif not (kind == "module_name_regex" and key in FIRST_AND_LAST_LAYERS):
                regions.setdefault((kind, key, qconfig is None), []).append(region)
    if unused:
        logger.warning(
            "the rules for %s are not used: this package quantizes %s alone", ", ".join(sorted(unused)), _QUANTIZED
        )
    layers = {
        region: {
            f"{part.path}.{name}" if name else part.path: layer
            for part in find_parts(model, [region])
            for name, layer in model.get_submodule(part.path).named_modules()
            if type(layer) in QAT_MODULES
        }
        for region in recipe
    }
    for (kind, key, is_float), where in regions.items():
        found = {name: layer for region in where for name, layer in layers[region].items()}
        _CHECKS[kind](key, found, model, f"in {', '.join(where)}", is_float)


def _rules(mapping: QConfigMapping) -> Iterator[tuple[str, Any, QConfig | None]]:
    """Kind, key and QConfig of every rule but the global one."""
    for kind in _CHECKS:
        for key, qconfig in getattr(mapping, f"{kind}_qconfigs").items():
            yield kind, key, qconfig


def _check_values(region: str, mapping: QConfigMapping) -> None:
    values = [("set_global", mapping.global_qconfig)]
    values += [(f"set_{kind}({key!r})", qconfig) for kind, key, qconfig in _rules(mapping)]
    for rule, qconfig in values:
        if not isinstance(qconfig, QConfig | None):
            raise QConfigError(
                f"region {region}: {rule} has a {type(qconfig).__name__} ({qconfig!r}) where a QConfig or None "
                "belongs; take lsc_qconfig(4, 8) for example"
            )


def _check_name(name: str, found: dict[str, nn.Module], model: nn.Module, where: str, is_float: bool) -> None:
    if any(f"{layer}.".startswith(f"{name}.") for layer in found):
        return
    modules = [module for module, _ in model.named_modules()][1:]
    if name not in modules:
        closest = difflib.get_close_matches(name, modules, n=1)
        raise QConfigError(
            f"set_module_name: {name!r} names no layer of the model"
            + (f"; did you mean {closest[0]!r}?" if closest else ", see model.named_modules()")
        )
    if not is_float:
        raise QConfigError(
            f"set_module_name: {name!r} has no {_QUANTIZED} {where}, where its rule is; this package quantizes those "
            "alone, so give another name, or move the rule to the mapping of its region"
        )


def _check_regex(pattern: str, found: dict[str, nn.Module], model: nn.Module, where: str, is_float: bool) -> None:
    try:
        match = re.compile(pattern).match
    except re.error as error:
        raise QConfigError(f"set_module_name_regex: {pattern!r} is no regular expression: {error}") from error
    if any(match(layer) for layer in found) or (is_float and any(match(name) for name, _ in model.named_modules())):
        return
    example = next(iter(found), "")
    raise QConfigError(
        f"set_module_name_regex: {pattern!r} matches the beginning of no layer's name {where}; "
        f"names there are like {example!r}"
    )


def _check_type(key: Any, found: dict[str, nn.Module], model: nn.Module, where: str, is_float: bool) -> None:
    if is_float and key not in QAT_MODULES:
        return
    if key not in QAT_MODULES:
        raise QConfigError(
            f"set_object_type: {_type_name(key)} is not quantized; this package quantizes the layers {_QUANTIZED}, not "
            "functions, methods or other layers. Choose one of these types, or remove the rule"
        )
    if not any(type(layer) is key for layer in found.values()):
        raise QConfigError(f"set_object_type: there is no {_type_name(key)} {where}; remove the rule")


def _check_order(
    rule: tuple[str, Any, int], found: dict[str, nn.Module], model: nn.Module, where: str, is_float: bool
) -> None:
    parent, kind, index = rule
    inside = [name for name, layer in found.items() if name.rpartition(".")[0] == parent and type(layer) is kind]
    raise QConfigError(
        f"set_module_name_object_type_order({parent!r}, {_type_name(kind)}, {index}) is not read by this package: "
        "every layer of SAM2 has a name of its own. Use set_module_name"
        + (f" with one of {', '.join(map(repr, inside))}" if inside else "")
    )


_CHECKS: dict[str, Callable[[Any, dict[str, nn.Module], nn.Module, str, bool], None]] = {
    "module_name": _check_name,
    "module_name_regex": _check_regex,
    "object_type": _check_type,
    "module_name_object_type_order": _check_order,
}


@functools.cache
def _types_of_torch_ao() -> frozenset[Any]:
    return frozenset(get_default_qat_qconfig_mapping().object_type_qconfigs)


def _has_defaults_of_torch_ao(mapping: QConfigMapping) -> bool:
    """Whether a mapping was made from torch.ao's default one, which has rules for every backend's operations."""
    return mapping.object_type_qconfigs.keys() >= _types_of_torch_ao()


def _type_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__name__", repr(kind))
