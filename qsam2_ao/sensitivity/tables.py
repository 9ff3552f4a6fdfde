"""Sensitivities and choices as tables for people."""

from __future__ import annotations

from rich.table import Table

from ..graph import REGIONS
from .assignment import Assignment
from .measure import Sensitivity

SHOWN = 12


def layers_table(sensitivity: Sensitivity, assignment: Assignment) -> Table:
    """The layers that lose the most at the fewest bits.

    Args:
        sensitivity: The measurement.
        assignment: The choice made from it.

    Example:
        >>> layers_table(sensitivity, assignment).row_count
        12
    """
    fewest = sensitivity.bits[0]
    layers = sorted((layer.name for layer in sensitivity.layers), key=lambda name: -sensitivity.loss(name, fewest))
    names = layers[:SHOWN]
    table = Table(title=f"The {len(names)} most sensitive of {len(layers)} layers", title_justify="left")
    table.add_column("layer", overflow="fold")
    for bits in sensitivity.bits:
        table.add_column(f"loss at {bits} bits", justify="right", no_wrap=True)
    table.add_column("chosen", justify="right", no_wrap=True)
    for name in names:
        losses = (f"{sensitivity.loss(name, bits):.2g}" for bits in sensitivity.bits)
        table.add_row(name, *losses, f"{assignment.bits.get(name, assignment.first_last_bits)} bits")
    return table


def regions_table(sensitivity: Sensitivity, assignment: Assignment) -> Table:
    """How many layers of each region get how many bits.

    Args:
        sensitivity: The measurement.
        assignment: The choice made from it.
    """
    table = Table(title="Layers by bits", title_justify="left")
    table.add_column("region")
    for bits in sensitivity.bits:
        table.add_column(f"{bits} bits", justify="right")
    table.add_column("first, last", justify="right")
    for region in REGIONS:
        names = [layer.name for layer in sensitivity.layers if layer.region == region]
        counts = [sum(assignment.bits.get(name) == bits for name in names) for bits in sensitivity.bits]
        table.add_row(region, *map(str, counts), str(len(names) - sum(counts)))
    return table
