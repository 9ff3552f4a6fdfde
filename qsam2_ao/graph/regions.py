"""The regions of SAM2 that are quantized, and the submodules (parts) of each that become FX graphs.

``SAM2Base`` and ``MaskDecoder`` reach into the mask decoder (``conv_s0``, the hypernetworks, the upscaling) and
branch on flags there, so the decoder keeps its Python shell, and the modules inside it become graphs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sam2.modeling.sam2_base import SAM2Base
from torch import nn

from ..errors import GraphTraceError, QConfigError
from ..spelling import unknown_name
from .paths import is_inside
from .single import SINGLE_LAYER, as_part
from .tracer import trace_part

# Region -> submodules of the model; "*" stands for every child, and what a model lacks is left out.
_REGION_PARTS: dict[str, tuple[str, ...]] = {
    "image_encoder": ("image_encoder",),
    "memory_attention": ("memory_attention",),
    "memory_encoder": ("memory_encoder",),
    "mask_decoder": (
        "sam_mask_decoder.transformer",
        "sam_mask_decoder.conv_s0",
        "sam_mask_decoder.conv_s1",
        "sam_mask_decoder.output_hypernetworks_mlps.*",
        "sam_mask_decoder.iou_prediction_head",
        "sam_mask_decoder.pred_obj_score_head",
    ),
    "obj_ptr_proj": ("obj_ptr_proj", "obj_ptr_tpos_proj"),
}

REGIONS: tuple[str, ...] = tuple(_REGION_PARTS)


@dataclass(frozen=True)
class Part:
    """A submodule that becomes one graph: its region and its path in the model."""

    region: str
    path: str

    def layer_name(self, layer: str) -> str:
        """The path in the model of a layer inside this part: the module, whose own name is empty, or its graph."""
        return self.path if layer in ("", SINGLE_LAYER) else f"{self.path}.{layer}"


def region_of(path: str) -> str | None:
    """The region that a layer of SAM2 is in, by its path in the model; None for one in no region.

    Example:
        >>> region_of("sam_mask_decoder.transformer.layers.0.mlp.layers.1")
        'mask_decoder'
    """
    for region, patterns in _REGION_PARTS.items():
        if is_inside(path, *(pattern.removesuffix(".*") for pattern in patterns)):
            return region
    return None


def check_regions(regions: Iterable[str]) -> None:
    """Refuse what is no region.

    Args:
        regions: Names, not one name by itself.

    Raises:
        QConfigError: A name is not in ``REGIONS``.

    Example:
        >>> check_regions(["image_encoder"])
    """
    if isinstance(regions, str):
        raise QConfigError(f"regions are a tuple of names: write ({regions!r},), not {regions!r}")
    if unknown := set(regions) - set(REGIONS):
        raise QConfigError(unknown_name("region", sorted(unknown)[0], REGIONS))


def find_parts(model: SAM2Base, regions: Iterable[str] = REGIONS) -> list[Part]:
    """The parts of ``model`` in the given regions, in the order of ``REGIONS``.

    Args:
        model: Any ``SAM2Base`` (float, prepared or deployed).
        regions: Names out of ``REGIONS``.

    Returns:
        One ``Part`` per graph. Optional parts that this model does not have (``nn.Identity``) are left out.

    Raises:
        GraphTraceError: ``model`` is no ``SAM2Base``.
        QConfigError: An unknown region.

    Example:
        >>> [part.path for part in find_parts(model, ["obj_ptr_proj"])]
        ['obj_ptr_proj', 'obj_ptr_tpos_proj']
    """
    if not isinstance(model, SAM2Base):
        raise GraphTraceError(
            f"expected a SAM2 model (sam2.modeling.sam2_base.SAM2Base), got {type(model).__qualname__}; pass the "
            "model itself, not a predictor around it (SAM2ImagePredictor(...).model)"
        )
    wanted = set(regions)
    check_regions(wanted)
    modules = dict(model.named_modules())
    parts = []
    for region, patterns in _REGION_PARTS.items():
        if region not in wanted:
            continue
        for pattern in patterns:
            parent, star, _ = pattern.partition(".*")
            paths = [f"{parent}.{name}" for name, _ in modules[parent].named_children()] if star else [pattern]
            parts += [Part(region, p) for p in paths if not isinstance(modules.get(p), (nn.Identity, type(None)))]
    return parts


def trace_regions(model: SAM2Base, regions: Iterable[str] = REGIONS) -> list[Part]:
    """Replace the parts of ``model`` by graphs, in place; parameters are shared with the modules replaced.

    Parts that are one lone layer have nothing to trace and stay as they are.

    Args:
        model: The model to change; copy it first to keep the original.
        regions: Names out of ``REGIONS``.

    Returns:
        The parts; :func:`~qsam2_ao.graph.graph_of` gives the graph of each.

    Raises:
        GraphTraceError: A part cannot be traced; the model is left as it was.

    Example:
        >>> trace_regions(model, ["image_encoder"])
        [Part(region='image_encoder', path='image_encoder')]
    """
    parts = find_parts(model, regions)
    graphs = [trace_part(model.get_submodule(part.path), part.path) for part in parts]
    for part, graph in zip(parts, graphs, strict=True):
        model.set_submodule(part.path, as_part(graph))
    return parts
