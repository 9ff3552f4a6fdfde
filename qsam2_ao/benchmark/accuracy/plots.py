"""The report's plots: accuracy against bits and bytes, and what VRC and LSC do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...reporting.figures import new_figure
from .methods import FLOAT, METHODS
from .plan import MAIN_MODELS, TRAINED
from .results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = "osD^vP*X"
_UNTRAINED = "VRC+GPTQ"


def _methods(results: Results, models: Sequence[str]) -> dict[str, dict[str, str]]:
    """The methods that were trained on any of the models, each with the mark and colour that it has in every panel."""
    names = [
        name
        for name, method in METHODS.items()
        if method.group in ("rival", "ours") and any(results.has(m, name, s) for m in models for s in TRAINED)
    ]
    marks = zip(names, cycle(_MARKS), cycle(f"C{number}" for number in range(10)), strict=False)
    return {name: {"marker": mark, "color": color, "label": name} for name, mark, color in marks}


def _legend(figure: Figure) -> None:
    """One for all panels: each may have methods that another has not."""
    known: dict[str, Any] = {}
    for axis in figure.axes:
        known |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.axes[0].legend(known.values(), known.keys(), fontsize=8)


#: The settings with 8-bit inputs, by the bits of the weights.
BY_BITS = {bits: f"W{bits}A8" for bits in (2, 3, 4, 8)}


def accuracy_against_bits(results: Results, models: Sequence[str] = MAIN_MODELS) -> Figure:
    """J&F against the bits of the weights, 8-bit inputs, one line per method."""
    figure = new_figure(figsize=(11, 4.5))
    axes = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    looks = _methods(results, models)
    for axis, model in zip(axes, models, strict=True):
        for method, look in looks.items():
            points = {
                bits: found
                for bits, setting in BY_BITS.items()
                if (found := results.spread(model, method, setting, "J&F")) is not None
            }
            if not points:
                continue
            axis.errorbar(
                list(points),
                [p.mean for p in points.values()],
                [p.std for p in points.values()],
                capsize=3,
                **look,
            )
        untrained = {
            bits: results.spread(model, _UNTRAINED, f"PTQ {setting}", "J&F") for bits, setting in BY_BITS.items()
        }
        if known := {bits: found.mean for bits, found in untrained.items() if found is not None}:
            axis.plot(list(known), list(known.values()), "x--", color="0.4", label=f"{_UNTRAINED}, untrained")
        _float_line(axis, results, model)
        axis.set(title=model, xlabel="bits per weight (8-bit inputs)", xticks=list(BY_BITS))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("J&F")
    _legend(figure)
    return figure


def accuracy_against_bytes(results: Results, models: Sequence[str] = MAIN_MODELS) -> Figure:
    """J&F against the size of the deployed tensors, every trained setting, one mark per method."""
    figure = new_figure(figsize=(11, 4.5))
    axes = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    looks = _methods(results, models)
    for axis, model in zip(axes, models, strict=True):
        for method, look in looks.items():
            points = []
            for setting in TRAINED:
                found = results.spread(model, method, setting, "J&F")
                if found is not None:
                    size = results.experiments(model, method, setting)[0]["bytes"] / 2**20
                    points.append((size, found.mean, setting))
            if points:
                axis.scatter([p[0] for p in points], [p[1] for p in points], alpha=0.8, **look)
        untrained = [
            (results.experiments(model, _UNTRAINED, f"PTQ {setting}")[0]["bytes"] / 2**20, found.mean)
            for setting in TRAINED
            if (found := results.spread(model, _UNTRAINED, f"PTQ {setting}", "J&F")) is not None
        ]
        if untrained:
            axis.scatter(*zip(*untrained, strict=True), marker="x", color="0.4", label=f"{_UNTRAINED}, untrained")
        floats = results.experiments(model, FLOAT, FLOAT)
        if floats:
            size = floats[0]["bytes"] / 2**20
            axis.scatter([size], [floats[0]["metrics"]["J&F"]], marker="*", color="black", s=90, label="float (bf16)")
        axis.set(title=model, xlabel="MiB of deployed tensors")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("J&F")
    _legend(figure)
    return figure


def _float_line(axis: Axes, results: Results, model: str) -> None:
    found = results.spread(model, FLOAT, FLOAT, "J&F")
    if found is not None:
        axis.axhline(found.mean, color="black", linestyle=":", label=FLOAT)


def weights_before_and_after(layer: str, weights: Mapping[str, Tensor]) -> Figure:
    """Histogram and singular values of one layer's weight in several forms.

    Args:
        layer: Its name, for the title.
        weights: Title -> weight, [out, in].
    """
    figure = new_figure(figsize=(11, 4))
    histogram, spectrum = figure.subplots(1, 2)
    for title, weight in weights.items():
        flat = weight.detach().float().flatten()
        std = float(flat.std())
        histogram.hist((flat / std).numpy(), bins=120, histtype="step", density=True, log=True, label=title)
        spectrum.semilogy(torch.linalg.svdvals(weight.detach().double()).numpy(), label=title)
    histogram.set(title=f"{layer}: values", xlabel="standard deviations", ylabel="density")
    spectrum.set(title="singular values", xlabel="index")
    for axis in (histogram, spectrum):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


def ranges_over_training(alphas: Mapping[str, list[float]], clips: Mapping[str, list[float]]) -> Figure:
    """Alpha and the clip range of some quantizers at every step.

    Args:
        alphas: Quantizer -> alpha_bar, the mean over its channels, one per step.
        clips: Quantizer -> half the clip range relative to its start, the mean over its channels, one per step.
    """
    figure = new_figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    for axis, lines, title in ((left, alphas, "alpha"), (right, clips, "clip range, relative to its start")):
        for name, values in lines.items():
            axis.plot(range(1, len(values) + 1), values, label=name)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    left.legend(fontsize=7)
    return figure
