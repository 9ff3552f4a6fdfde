"""The coverage report: every layer of a model, what it is quantized to, and why it stayed float where it did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.table import Table
from sam2.modeling.sam2_base import SAM2Base
from torch import fx, nn

from ..convert import describe_layer
from ..deploy.record import LayerRecord
from ..graph import SINGLE_LAYER, Part, find_parts, graph_of
from ..graph.paths import is_inside
from ..rich_repr import ShowsTable
from ..spelling import counted
from ..stage import LayerTarget, stage_of
from .speed import LayerTime

_FLOAT_REASONS: dict[str, str] = {
    "LayerNorm": "normalization is computed in float",
    "LayerNorm2d": "normalization is computed in float",
    "ConvTranspose2d": "transposed convolutions have no low-bit pattern in this backend",
    "Embedding": "an embedding table is looked up, not multiplied",
    "Parameter": "an embedding or scale, added or multiplied elementwise",
}


@dataclass(frozen=True)
class LayerCoverage:
    """One layer (or lone parameter) of the model.

    Attributes:
        name: Path in the model.
        region: Region of SAM2; None outside the regions that are quantized.
        type: Class of the layer.
        shape: Shape of its weight.
        parameters: Number of its parameters, bias included.
        weight_bits: Bits per weight; the float width where it is not quantized.
        activation_bits: Bits of its input; the float width where it is not quantized.
        granularity: What shares one scale; None in float.
        target: "float", "fake-quantized" (prepared), "packed" or another lowering target.
        reason: Why it stayed float, or why it did not get the target that was asked for; empty otherwise.
        time: How long it takes, if that was measured.
    """

    name: str
    region: str | None
    type: str
    shape: tuple[int, ...]
    parameters: int
    weight_bits: int
    activation_bits: int
    granularity: str | None
    target: str
    reason: str
    time: LayerTime | None = None

    @property
    def note(self) -> str:
        """The reason, and whether the layer measured slower than in float."""
        slower = ""
        if self.time is not None and self.time.slower:
            slower = f"slower than in float: {self.time.ms:.3g} ms against {self.time.float_ms:.3g}"
        return "; ".join(filter(None, (self.reason, slower)))


@dataclass(frozen=True)
class CoverageReport(ShowsTable):
    """The rows of a coverage report."""

    layers: tuple[LayerCoverage, ...]

    @property
    def quantized_share(self) -> float:
        """Share of the model's parameters that belong to quantized layers, 0 to 1."""
        total = sum(layer.parameters for layer in self.layers)
        return sum(layer.parameters for layer in self.layers if layer.target != "float") / max(total, 1)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {
            "quantized_share": self.quantized_share,
            "layers": [asdict(layer) | {"note": layer.note} for layer in self.layers],
        }

    def table(self) -> Table:
        """The report as a rich table, narrow enough for terminals: reasons stand below it, by number."""
        share = f"{100 * self.quantized_share:.1f}% of the parameters in quantized layers"
        reasons = dict.fromkeys(layer.reason for layer in self.layers if layer.reason)
        numbers = {reason: str(number) for number, reason in enumerate(reasons, 1)}
        table = Table(
            title=f"{counted(len(self.layers), 'layer')}, {share}",
            caption="\n".join(f"{number}: {reason}" for reason, number in numbers.items()),
            title_justify="left",
            caption_justify="left",
            box=None,
            pad_edge=False,
        )
        timed = any(layer.time for layer in self.layers)
        table.add_column("layer", overflow="fold")
        for column in ("type", "shape", "bits", "scales", "target", *(("ms", "float ms") if timed else ()), "note"):
            table.add_column(column, no_wrap=True)
        for layer in self.layers:
            slower = layer.time is not None and layer.time.slower
            table.add_row(
                layer.name,
                layer.type,
                "x".join(map(str, layer.shape)),
                f"{layer.weight_bits} x {layer.activation_bits}",
                layer.granularity or "-",
                layer.target,
                *((f"{layer.time.ms:.3g}", f"{layer.time.float_ms:.3g}") if layer.time else ("-", "-") * timed),
                ", ".join(filter(None, (numbers.get(layer.reason), "slower" if slower else None))),
                style="dim" if layer.target == "float" else None,
            )
        return table


def coverage_report(model: SAM2Base, times: Mapping[str, LayerTime] | None = None) -> CoverageReport:
    """List every layer of a float, prepared or deployed model.

    Args:
        model: A model of the ``SAM2Base`` family.
        times: From ``layer_times``: layers that measured slower than in float are then flagged.

    Returns:
        One row per layer, in the order of the model.

    Example:
        >>> report = coverage_report(quantized)
        >>> report.quantized_share > 0.9
        True
        >>> [layer.name for layer in report.layers if layer.target == "float"][:2]
        ['maskmem_tpos_enc', 'no_mem_embed']
    """
    parts = find_parts(model)
    stage = stage_of(model)
    deployed = {deployed_path(model, record): record for record in stage.layers}
    rows = []
    for path, module in model.named_modules():
        part = _part_of(path, parts)
        if part is not None and hasattr(module, "weight_fake_quant"):
            rows.append(_prepared_row(model, part, path, module))
        elif path in deployed:
            rows.append(_deployed_row(deployed[path], module, stage.targets))
        else:
            rows += _float_rows(path, module, part, quantized=stage.name != "float")
    return CoverageReport(tuple(replace(row, time=(times or {}).get(row.name)) for row in rows))


def deployed_path(model: SAM2Base, record: LayerRecord) -> str:
    """Where a deployed layer is: where the model had it, but for the graph that a lone layer was lowered to.

    Args:
        model: A converted or deployed model.
        record: Of one of its layers.
    """
    return (
        f"{record.part}.{record.layer}" if isinstance(model.get_submodule(record.part), fx.GraphModule) else record.name
    )


def _part_of(path: str, parts: list[Part]) -> Part | None:
    return next((part for part in parts if is_inside(path, part.path)), None)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _float_bits(tensor: torch.Tensor) -> int:
    return 8 * tensor.dtype.itemsize


def _prepared_row(model: SAM2Base, part: Part, path: str, module: nn.Module) -> LayerCoverage:
    layer = SINGLE_LAYER if path == part.path else path.removeprefix(part.path + ".")
    record = describe_layer(graph_of(model.get_submodule(part.path)), part, layer)
    return _row(record, module, "fake-quantized", "")


def _deployed_row(record: LayerRecord, module: nn.Module, targets: Mapping[str, LayerTarget]) -> LayerCoverage:
    target, reason = targets.get(record.name, ("packed", None))
    return _row(record, module, target, reason or "")


def _row(record: LayerRecord, module: nn.Module, target: str, reason: str) -> LayerCoverage:
    bias = getattr(module, "bias", None)
    count = torch.Size(record.shape).numel() + (0 if bias is None else bias.numel())
    return LayerCoverage(
        name=record.name,
        region=record.region,
        type=record.kind,
        shape=record.shape,
        parameters=count,
        weight_bits=record.bits,
        activation_bits=record.activation_bits or 32,
        granularity=record.granularity + (f" ({record.group_size})" if record.group_size else ""),
        target=target,
        reason=reason,
    )


def _float_rows(path: str, module: nn.Module, part: Part | None, *, quantized: bool) -> Iterator[LayerCoverage]:
    own = dict(module.named_parameters(recurse=False))
    if not own:
        return
    region = part.region if part else None
    is_layer = "weight" in own
    for name in ["weight"] if is_layer else own:
        kind = type(module).__name__ if is_layer else "Parameter"
        reason = _FLOAT_REASONS.get(kind)
        if reason is None and not quantized:
            reason = "the model is not quantized"
        elif reason is None:
            reason = "its qconfig keeps it in float" if region else "outside the regions that are quantized"
        yield LayerCoverage(
            name=(part.layer_name(path.removeprefix(part.path + ".")) if part and path != part.path else path)
            if is_layer
            else f"{path}.{name}".lstrip("."),
            region=region,
            type=kind.lower() if kind in ("Linear", "Conv2d") else kind,
            shape=tuple(own[name].shape),
            parameters=_count(module) if is_layer else own[name].numel(),
            weight_bits=_float_bits(own[name]),
            activation_bits=32,
            granularity=None,
            target="float",
            reason=reason,
        )


__all__ = ["CoverageReport", "LayerCoverage", "coverage_report", "deployed_path"]
