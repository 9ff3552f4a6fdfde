"""A recipe and a model -> what every layer of the model gets; the one place where a layer's QConfig is looked up.

A recipe is a preset's name, a torch.ao ``QConfig``, a ``QConfigMapping`` (its module names are paths in the SAM2
model, its regular expressions match their beginnings), or a mapping from region name to any of these (or None, to
keep that region in float).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sam2.modeling.sam2_base import SAM2Base
from torch import nn
from torch.ao.quantization import QConfig, QConfigMapping

from ..errors import QConfigError
from ..graph import REGIONS, Part, find_parts
from ..spelling import unknown_name
from .backend import layers_of_part
from .presets import everywhere, preset_qconfig
from .rules import check_rules

QConfigLike: TypeAlias = "str | QConfig | QConfigMapping | Mapping[str, str | QConfig | QConfigMapping | None]"
"""What ``prepare_qsam2`` accepts as ``qconfig``."""


@dataclass(frozen=True)
class LayerRecipe:
    """What one layer of a model gets.

    Attributes:
        name: The layer's path in the model.
        part: The part of the model that it is in.
        qconfig: What makes the fake-quantizers of its weight and input.
    """

    name: str
    part: Part
    qconfig: QConfig


def resolve_recipe(qconfig: QConfigLike, model: SAM2Base) -> dict[str, LayerRecipe]:
    """What every layer of a model gets by a recipe.

    Args:
        qconfig: The recipe.
        model: A float model of the ``SAM2Base`` family.

    Returns:
        Name -> recipe of the layers to quantize, part by part; the others stay float.

    Raises:
        QConfigError: An unknown preset or region, a rule that selects no layer, or nothing to quantize.
        GraphTraceError: ``model`` is no SAM2.

    Example:
        >>> resolve_recipe("w4a8", model)["obj_ptr_tpos_proj"].part.region
        'obj_ptr_proj'
    """
    mappings = resolve_qconfig(qconfig)
    parts = find_parts(model, mappings)
    check_rules(mappings, model)
    recipe: dict[str, LayerRecipe] = {}
    for part in parts:
        recipe |= part_recipe(mappings[part.region], part, model.get_submodule(part.path))
    if not recipe:
        raise QConfigError("the qconfig names no layer of the model, so there is nothing to quantize")
    return recipe


def part_recipe(mapping: QConfigMapping, part: Part, module: nn.Module) -> dict[str, LayerRecipe]:
    """What the layers of one part get.

    Args:
        mapping: The region's mapping, with layer names as paths in the model.
        part: Which part it is.
        module: The part in float, as a module or as a graph.

    Returns:
        Name -> recipe of the layers to quantize.
    """
    return {
        name: LayerRecipe(name, part, qconfig)
        for name, layer in layers_of_part(part, module)
        if (qconfig := layer_qconfig(mapping, name, type(layer))) is not None
    }


def resolve_qconfig(qconfig: QConfigLike) -> dict[str, QConfigMapping]:
    """Bring any accepted qconfig into the form region -> ``QConfigMapping``.

    Args:
        qconfig: See ``QConfigLike``.

    Returns:
        The mappings of the regions to quantize; regions left out stay float.

    Raises:
        QConfigError: An unknown preset or region, a value of another type, or nothing to quantize.

    Example:
        >>> sorted(resolve_qconfig({"image_encoder": "w4a8", "mask_decoder": None}))
        ['image_encoder']
    """
    if isinstance(qconfig, str):
        return preset_qconfig(qconfig)
    if isinstance(qconfig, QConfig):
        return everywhere(qconfig)
    if isinstance(qconfig, QConfigMapping):
        return dict.fromkeys(REGIONS, qconfig)
    if not isinstance(qconfig, Mapping):
        raise QConfigError(
            f"a qconfig is a preset's name, a QConfig, a QConfigMapping or a mapping from region to one of those, "
            f"not {type(qconfig).__name__}"
        )
    if qconfig and qconfig.keys() <= QConfigMapping().to_dict().keys():
        raise QConfigError("this is a qconfig_dict of torch.ao; pass QConfigMapping.from_dict(...) of it")
    recipe = {}
    for region, value in qconfig.items():
        if region not in REGIONS:
            raise QConfigError(unknown_name("region", region, REGIONS))
        if value is None:
            continue
        if isinstance(value, Mapping):
            raise QConfigError(f"region {region!r}: expected a preset, QConfig or QConfigMapping, not a mapping")
        recipe[region] = resolve_qconfig(value)[region]
    if not recipe:
        raise QConfigError("the qconfig leaves every region in float, so there is nothing to quantize")
    return recipe


def layer_qconfig(mapping: QConfigMapping, name: str, kind: type[nn.Module]) -> QConfig | None:
    """The QConfig of one layer, by torch.ao's precedence: module name, regular expression, type, global.

    Args:
        mapping: The region's mapping.
        name: The layer's path in the model.
        kind: The layer's class.

    Returns:
        Its QConfig; None when it stays float.
    """
    parent = name
    while parent:
        if parent in mapping.module_name_qconfigs:
            return mapping.module_name_qconfigs[parent]
        parent = parent.rpartition(".")[0]
    for pattern, qconfig in mapping.module_name_regex_qconfigs.items():
        if re.match(pattern, name):
            return qconfig
    return mapping.object_type_qconfigs.get(kind, mapping.global_qconfig)
