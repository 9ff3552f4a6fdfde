"""A prepared or quantized model at a glance: recipe, size, and how many layers of each region have how many bits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rich.table import Table
from sam2.modeling.sam2_base import SAM2Base

from ..rich_repr import ShowsTable
from ..stage import stage_of
from .coverage import coverage_report
from .size import ModelSize, human_bytes, model_size

_FLOAT = "float"


@dataclass(frozen=True)
class ModelSummary(ShowsTable):
    """A model at a glance.

    Attributes:
        stage: "float", "prepared", "converted" or "deployed".
        recipe: What it was quantized by; None where that is not known.
        size: Bytes of its tensors.
        quantized_share: Share of the parameters that belong to quantized layers, 0 to 1.
        layers: Region ("" outside of them) -> what a layer is (such as "4 x 8 bits, packed", or "float") -> how many.
    """

    stage: str
    recipe: str | None
    size: ModelSize
    quantized_share: float
    layers: dict[str, dict[str, int]]

    def table(self) -> Table:
        """A row for each region."""
        ratio = self.size.compression
        than = f"{ratio:.1f}x smaller" if ratio >= 1 else f"{1 / ratio:.1f}x larger"
        size = f"{human_bytes(self.size.actual_bytes)}, {than} than bfloat16"
        share = f"{100 * self.quantized_share:.1f}% of the parameters in quantized layers"
        table = Table(title=f"{self.stage} {self.recipe or ''}: {size}; {share}", title_justify="left")
        found = {kind for counts in self.layers.values() for kind in counts}
        kinds = sorted(found - {_FLOAT}) + sorted(found & {_FLOAT})
        table.add_column("region")
        for kind in kinds:
            table.add_column(kind, justify="right")
        for region, counts in self.layers.items():
            table.add_row(region or "elsewhere", *(str(counts.get(kind, "-")) for kind in kinds))
        return table


def model_summary(model: SAM2Base) -> ModelSummary:
    """Summarise a float, prepared or quantized model.

    Args:
        model: A model of the ``SAM2Base`` family.

    Example:
        >>> model_summary(quantized).stage
        'converted'
    """
    coverage, stage = coverage_report(model), stage_of(model)
    layers: dict[str, Counter[str]] = {}
    for layer in coverage.layers:
        bits = f"{layer.weight_bits} x {layer.activation_bits} bits"
        kind = _FLOAT if layer.target == _FLOAT else f"{bits}, {layer.target}"
        layers.setdefault(layer.region or "", Counter())[kind] += 1
    recipe = (stage.info or {}).get("qconfig")
    return ModelSummary(
        stage.name,
        None if recipe is None else str(recipe),
        model_size(model),
        coverage.quantized_share,
        {region: dict(found) for region, found in layers.items()},
    )
