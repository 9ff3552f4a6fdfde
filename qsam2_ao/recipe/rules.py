"""Whether the rules of QConfigMappings select anything in a model: none is dropped without a word."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sam2.modeling.sam2_base import SAM2Base
from torch import nn
from torch.ao.quantization import QConfig, QConfigMapping, get_default_qat_qconfig_mapping

from ..errors import QConfigError
from ..graph import find_parts
from ..graph.paths import is_inside
from ..spelling import did_you_mean
from .backend import QAT_MODULES, layers_of_part
from .presets import EXCEPTED_LAYERS

logger = logging.getLogger(__name__)

_QUANTIZED = " and ".join(f"nn.{layer.__name__}" for layer in QAT_MODULES)


def check_rules(recipe: Mapping[str, QConfigMapping], model: SAM2Base) -> None:
    """Refuse rules that select no layer of the model, and kinds of rules that this package does not read.

    A rule counts as used if it selects a layer in any of the regions whose mappings have it, so that one mapping can
    serve several regions. A rule without a QConfig (None) is also right for whatever stays in float anyway.
    ``EXCEPTED_LAYERS`` name layers that not every SAM2 has, and torch.ao's default mapping operations that this
    package keeps in float: the former are no error, and the latter are logged.

    Args:
        recipe: Region -> mapping.
        model: A float model of the ``SAM2Base`` family.

    Raises:
        QConfigError: Naming the rule, and what to choose instead.

    Example:
        >>> check_rules(preset_qconfig("w4a8"), model)
    """
    regions: dict[tuple[str, Any, bool], tuple[Rule, list[str]]] = {}
    unused: set[str] = set()
    for region, mapping in recipe.items():
        _check_values(region, mapping)
        for rule in rules_of(mapping):
            if rule.kind == "object_type" and rule.key not in QAT_MODULES and _has_defaults_of_torch_ao(mapping):
                unused.add(_type_name(rule.key))
            elif not rule.is_of_a_preset:
                regions.setdefault((rule.kind, rule.key, rule.qconfig is None), (rule, []))[1].append(region)
    if unused:
        logger.warning(
            "the rules for %s are not used: this package quantizes %s alone", ", ".join(sorted(unused)), _QUANTIZED
        )
    layers = {
        region: {
            name: type(layer)
            for part in find_parts(model, [region])
            for name, layer in layers_of_part(part, model.get_submodule(part.path))
        }
        for region in recipe
    }
    for rule, where in regions.values():
        found = {name: kind for region in where for name, kind in layers[region].items()}
        if rule.selects(found.items()):
            continue
        wrong = _EXPLANATIONS[rule.kind](rule, found, model, f"in {', '.join(where)}")
        if wrong is not None:
            raise QConfigError(wrong)


@dataclass(frozen=True)
class Rule:
    """One rule of a QConfigMapping.

    Attributes:
        kind: "module_name", "module_name_regex", "object_type" or "module_name_object_type_order".
        key: What it selects by.
        qconfig: What it gives; None for float.
    """

    kind: str
    key: Any
    qconfig: QConfig | None

    def __str__(self) -> str:
        arguments = self.key if isinstance(self.key, tuple) else (self.key,)
        return f"set_{self.kind}({', '.join(map(repr, arguments))})"

    @property
    def is_of_a_preset(self) -> bool:
        """Whether it is one of the presets' rules for layers that not every model has."""
        return self.kind == "module_name_regex" and self.key in EXCEPTED_LAYERS

    def selects(self, layers: Iterable[tuple[str, type[nn.Module] | None]]) -> bool:
        """Whether it is read, and selects any of some layers.

        Args:
            layers: Path and class of each.

        Raises:
            QConfigError: Its pattern is no regular expression.
        """
        if self.kind == "module_name":
            return any(is_inside(name, self.key) for name, _ in layers)
        if self.kind == "module_name_regex":
            matches = self.matcher()
            return any(matches(name) for name, _ in layers)
        if self.kind == "object_type":
            return any(kind is self.key for _, kind in layers)
        return False

    def matcher(self) -> Callable[[str], object]:
        """What says whether its pattern matches the beginning of a name."""
        try:
            return re.compile(self.key).match
        except re.error as error:
            raise QConfigError(f"set_module_name_regex: {self.key!r} is no regular expression: {error}") from error


def rules_of(mapping: QConfigMapping) -> Iterator[Rule]:
    """Every rule of a mapping but the global one."""
    for kind in _EXPLANATIONS:
        for key, qconfig in getattr(mapping, f"{kind}_qconfigs").items():
            yield Rule(kind, key, qconfig)


def _check_values(region: str, mapping: QConfigMapping) -> None:
    values = [("set_global", mapping.global_qconfig)]
    values += [(f"set_{rule.kind}({rule.key!r})", rule.qconfig) for rule in rules_of(mapping)]
    for rule, qconfig in values:
        if not isinstance(qconfig, QConfig | None):
            raise QConfigError(
                f"region {region}: {rule} has a {type(qconfig).__name__} ({qconfig!r}) where a QConfig or None "
                "belongs; take lsc_qconfig(4, 8) for example"
            )


# What is wrong with a rule that selects none of the layers `found`; None where it is right all the same.


def _explain_name(rule: Rule, found: Mapping[str, type[nn.Module]], model: nn.Module, where: str) -> str | None:
    name = rule.key
    modules = [module for module, _ in model.named_modules()][1:]
    if name not in modules:
        meant = did_you_mean(name, modules) or ", see model.named_modules()"
        return f"set_module_name: {name!r} names no layer of the model{meant}"
    if rule.qconfig is None:
        return None
    return (
        f"set_module_name: {name!r} has no {_QUANTIZED} {where}, where its rule is; this package quantizes those "
        "alone, so give another name, or move the rule to the mapping of its region"
    )


def _explain_regex(rule: Rule, found: Mapping[str, type[nn.Module]], model: nn.Module, where: str) -> str | None:
    matches = rule.matcher()
    if rule.qconfig is None and any(matches(name) for name, _ in model.named_modules()):
        return None
    example = next(iter(found), "")
    inside = next((name for name in found if re.search(rule.key, name)), None)
    return (
        f"set_module_name_regex: {rule.key!r} matches the beginning of no layer's name {where}; "
        f"names there are like {example!r}"
        + (f"; it matches inside of {inside!r}: put '.*' or the names before it in front" if inside else "")
    )


def _explain_type(rule: Rule, found: Mapping[str, type[nn.Module]], model: nn.Module, where: str) -> str | None:
    if rule.key in QAT_MODULES:
        return f"set_object_type: there is no {_type_name(rule.key)} {where}; remove the rule"
    if rule.qconfig is None:
        return None
    return (
        f"set_object_type: {_type_name(rule.key)} is not quantized; this package quantizes the layers {_QUANTIZED}, "
        "not functions, methods or other layers. Choose one of these types, or remove the rule"
    )


def _explain_order(rule: Rule, found: Mapping[str, type[nn.Module]], model: nn.Module, where: str) -> str | None:
    parent, kind, index = rule.key
    inside = [name for name, layer in found.items() if name.rpartition(".")[0] == parent and layer is kind]
    return (
        f"set_module_name_object_type_order({parent!r}, {_type_name(kind)}, {index}) is not read by this package: "
        "every layer of SAM2 has a name of its own. Use set_module_name"
        + (f" with one of {', '.join(map(repr, inside))}" if inside else "")
    )


_EXPLANATIONS: dict[str, Callable[[Rule, Mapping[str, type[nn.Module]], nn.Module, str], str | None]] = {
    "module_name": _explain_name,
    "module_name_regex": _explain_regex,
    "object_type": _explain_type,
    "module_name_object_type_order": _explain_order,
}


@functools.cache
def _types_of_torch_ao() -> frozenset[Any]:
    return frozenset(get_default_qat_qconfig_mapping().object_type_qconfigs)


def _has_defaults_of_torch_ao(mapping: QConfigMapping) -> bool:
    """Whether a mapping was made from torch.ao's default one, which has rules for every backend's operations."""
    return mapping.object_type_qconfigs.keys() >= _types_of_torch_ao()


def _type_name(kind: object) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__name__", repr(kind))
