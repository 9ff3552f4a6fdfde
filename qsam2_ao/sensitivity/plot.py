"""The sensitivity of every layer of a region as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..reporting.figures import new_figure
from .assignment import Assignment
from .measure import LayerSensitivity, Sensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = "osD^vP*"
# Losses of the metric "sqnr" span decades; smaller ones than this are drawn at the edge.
_SMALLEST = 1e-9
_AXIS = {"sqnr": "relative squared error of the outputs", "jf": "loss of J&F and box mIoU in percent"}


def region_figure(sensitivity: Sensitivity, region: str, assignment: Assignment | None = None) -> Figure:
    """What each layer of a region costs, one mark per bit-width, the layers from top to bottom.

    Args:
        sensitivity: The measurement.
        region: The region to draw.
        assignment: Its choices are ringed.

    Returns:
        A figure that grows with the number of layers.

    Example:
        >>> region_figure(sensitivity, "memory_attention").savefig("memory_attention.png")
    """
    layers = [layer.name for layer in sensitivity.layers if layer.region == region]
    figure = new_figure(figsize=(10, 1.6 + 0.24 * len(layers)))
    axis = figure.subplots()
    rows = {name: row for row, name in enumerate(layers)}
    logarithmic = sensitivity.metric == "sqnr"

    def points(records: list[LayerSensitivity]) -> tuple[list[float], list[int]]:
        losses = [max(record.loss, _SMALLEST) if logarithmic else record.loss for record in records]
        return losses, [rows[record.layer] for record in records]

    inside = [record for record in sensitivity.records if record.region == region]
    for mark, bits in zip(_MARKS, sensitivity.bits, strict=False):
        axis.plot(*points([r for r in inside if r.bits == bits]), mark, markersize=5, label=f"{bits} bits")
    if assignment is not None:
        chosen = points([r for r in inside if assignment.bits.get(r.layer) == r.bits])
        axis.plot(*chosen, "o", markersize=11, fillstyle="none", color="black", label="chosen")
    axis.set_yticks(range(len(layers)), layers, fontsize=8)
    axis.set_ylim(len(layers) - 0.5, -0.5)
    if logarithmic:
        axis.set_xscale("log")
    axis.set(title=f"{region}: each layer quantized alone", xlabel=_AXIS[sensitivity.metric])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure
