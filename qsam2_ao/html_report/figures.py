"""The figures of a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..graph import REGIONS
from ..reporting.figures import new_figure
from .layer_errors import LayerError
from .weights import LayerWeights, Limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOAT, QUANTIZED, LIMIT = "#9aa0b5", "#3949ab", "#c62828"
_WIDTH = 6.4
"""Inches; a phone shows it at two thirds of its size, and its text can be read."""
_MOST_DECIBELS = 80.0
"""Layers that lose less are drawn here."""


def _axis(width: float, height: float) -> tuple[Figure, Axes]:
    figure = new_figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    return figure, axis


def _legend_above(axis: Axes, columns: int, size: float = 9) -> None:
    """On top of the axis and not beside it or in it: narrow screens have no room there, and lines would cross it."""
    axis.legend(frameon=False, ncols=columns, fontsize=size, loc="lower left", bbox_to_anchor=(-0.01, 1.0))


def bars(
    names: Sequence[str], series: Mapping[str, Sequence[float]], label: str, colours: Sequence[str] = (FLOAT, QUANTIZED)
) -> Figure:
    """Horizontal bars: a group for each name, from top to bottom.

    Args:
        names: Of the groups.
        series: Legend -> a value for each group.
        label: Of the axis.
        colours: Of the series.
    """
    figure, axis = _axis(_WIDTH, 0.9 + 0.15 * len(names) * (len(series) + 0.6))
    thickness = 0.8 / len(series)
    for number, (legend, values) in enumerate(series.items()):
        positions = np.arange(len(names)) + (number - (len(series) - 1) / 2) * thickness
        axis.barh(positions, values, thickness, label=legend, color=colours[number % len(colours)])
    axis.set_yticks(range(len(names)), map(_plain, names), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.grid(axis="y", visible=False)
    axis.margins(y=0.02)
    if len(series) > 1:
        _legend_above(axis, 3)
    return figure


def bits_by_layer(regions: Sequence[str], bits: Sequence[int], activation_bits: Sequence[int | None]) -> Figure:
    """Bits of weights and inputs, layer after layer, the regions shaded in turn."""
    figure, axis = _axis(_WIDTH, 2.6)
    places = np.arange(len(bits))
    axis.bar(places, bits, 0.85, color=QUANTIZED, label="weights")
    inputs = [np.nan if value is None else value for value in activation_bits]
    axis.plot(places, inputs, "_", color=LIMIT, markersize=5, label="inputs")
    _shade(axis, regions)
    axis.set(ylabel="bits", ylim=(0, max([8, *bits]) + 0.9), yticks=(2, 4, 6, 8))
    axis.grid(axis="x", visible=False)
    _legend_above(axis, 2)
    return figure


def errors_by_layer(errors: Sequence[LayerError]) -> Figure:
    """What each layer adds, and what has added up until it."""
    figure, axis = _axis(_WIDTH, 3.2)
    places = np.arange(len(errors))
    axis.plot(places, [min(e.own, _MOST_DECIBELS) for e in errors], "o", color=QUANTIZED, markersize=3, label="alone")
    so_far = [np.nan if e.so_far is None else min(e.so_far, _MOST_DECIBELS) for e in errors]
    axis.plot(places, so_far, "-", color=LIMIT, linewidth=1.2, label="with all layers before it")
    _shade(axis, [error.region for error in errors])
    axis.set(ylabel="SQNR, dB")
    _legend_above(axis, 2)
    return figure


def _shade(axis: Axes, regions: Sequence[str]) -> None:
    """The regions one after another along the axis, with their names."""
    starts = [i for i, region in enumerate(regions) if i == 0 or regions[i - 1] != region]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(regions)], strict=True)):
        axis.axvspan(start - 0.5, end - 0.5, color="black", alpha=0.05 * (number % 2), linewidth=0)
    middles = [(start + end - 1) / 2 for start, end in zip(starts, [*starts[1:], len(regions)], strict=True)]
    axis.set_xticks(middles, [regions[i].replace("_", " ") for i in starts], rotation=25, ha="right", fontsize=8)
    axis.set_xlim(-0.5, len(regions) - 0.5)


def weight_histogram(weights: LayerWeights) -> Figure:
    """Weights before and after on a logarithmic count, with the ranges that they are clipped to."""
    figure, axis = _axis(4.4, 2.6)
    everything = np.concatenate([weights.before.numpy(), weights.after.numpy()])
    edges = np.linspace(float(everything.min()), float(everything.max()) + 1e-12, 80).tolist()
    axis.hist(weights.before.numpy(), edges, histtype="stepfilled", color=FLOAT, alpha=0.6, label="float")
    axis.hist(weights.after.numpy(), edges, histtype="step", color=QUANTIZED, label=f"{weights.bits} bits")
    if weights.limits_before is not None:
        _mark(axis, weights.limits_before, "black", "--", "range before")
    _mark(axis, weights.limits_after, LIMIT, "-", "range after")
    _finish_histogram(axis, "weight")
    return figure


def _mark(axis: Axes, limits: Limits, colour: str, style: str, label: str) -> None:
    for low, middle, high in (limits.low, limits.high):
        axis.axvline(middle, color=colour, linestyle=style, linewidth=1.1, label=label)
        axis.axvspan(low, high, color=colour, alpha=0.07, linewidth=0)
        label = "_"


def input_histogram(error: LayerError) -> Figure:
    """The float model's input of a layer, with the range that it is clipped to."""
    figure, axis = _axis(4.4, 2.6)
    axis.hist(error.inputs.numpy(), 80, histtype="stepfilled", color=FLOAT, alpha=0.6, label="float")
    if error.clip is not None:
        for number, limit in enumerate(error.clip):
            axis.axvline(
                limit, color=LIMIT, linewidth=1.1, label="_" if number else f"range, {error.activation_bits} bits"
            )
    _finish_histogram(axis, "input")
    return figure


def _finish_histogram(axis: Axes, label: str) -> None:
    axis.set_yscale("log")
    axis.set(xlabel=label, ylabel="values")
    axis.tick_params(labelsize=8)
    _legend_above(axis, 2, 7.5)


def curves(rows: Sequence[Mapping[str, float]], names: Iterable[str], label: str) -> Figure:
    """Figures of a training against its steps.

    Args:
        rows: Lines of the log; each has a "step" and some of the names.
        names: What to draw.
        label: Of the axis.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axis = _axis(5.6, 3)
    values: list[float] = []
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row and np.isfinite(row[name])]
        values += [y for _, y in points]
        axis.plot(
            *zip(*points, strict=True),
            "-" if len(points) > 8 else "-o",
            linewidth=1.2,
            markersize=3,
            label=_plain(name),
        )
    if values and min(values) > 0 and max(values) > 50 * min(values):
        axis.set_yscale("log")
    axis.set(xlabel="step", ylabel=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(axis, 3, 7)
    return figure


def pareto(points: Mapping[str, tuple[float, float, float | None]], accuracy: str) -> Figure:
    """Size against accuracy; those that no other beats in both are joined.

    Args:
        points: Model -> bytes of its file, its accuracy in percent, and how many times faster it is than the first.
        accuracy: What is measured.
    """
    figure, axis = _axis(_WIDTH, 3.8)
    best = sorted(
        (size, score)
        for size, score, _ in points.values()
        if not any(s <= size and a >= score and (s, a) != (size, score) for s, a, _ in points.values())
    )
    axis.plot([size / 1e6 for size, _ in best], [score for _, score in best], "-", color=FLOAT, linewidth=1)
    for name, (size, score, speed) in points.items():
        axis.plot(size / 1e6, score, "o", color=QUANTIZED, markersize=7)
        text = name if speed is None else f"{name}, {speed:.2f}x"
        axis.annotate(_plain(text), (size / 1e6, score), xytext=(6, -13), textcoords="offset points", fontsize=9)
    axis.margins(0.18)
    axis.set_ylim(top=min(axis.get_ylim()[1], 100.5))
    axis.set(xlabel="file, MB", ylabel=accuracy)
    return figure


def _plain(text: str) -> str:
    """Text whose dollars are no mathematics."""
    return text.replace("$", r"\$")


def region_order(regions: Iterable[str]) -> list[str]:
    """Regions in the order of the model."""
    return sorted(set(regions), key=lambda region: REGIONS.index(region) if region in REGIONS else len(REGIONS))
