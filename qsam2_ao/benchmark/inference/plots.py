"""Plots of the inference benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...optional import needed
from ...reporting.figures import new_figure
from .footprint import CHECKPOINT
from .methods import REFERENCE
from .parts import ENCODER
from .report import find, workloads_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WEIGHT_BITS = {"fp32": 32, "bf16": 16, "int8": 8, "INT8": 8, "int4": 4}


def latency_against_size(records: Sequence[Mapping[str, Any]], files: Sequence[Mapping[str, Any]]) -> Figure:
    """Time of the image encoder against the bytes of the model: a row for each model."""
    records = [r for r in records if r["part"] == ENCODER]
    workloads = [each for each in workloads_of(records) if find(files, model=each["model"], file=CHECKPOINT)]
    models = list(dict.fromkeys(each["model"] for each in workloads))
    settings = list(dict.fromkeys((each["size"], each["threads"]) for each in workloads))
    rows, columns = max(1, len(models)), max(1, len(settings))
    figure = new_figure(figsize=(max(3.2 * columns, 6), 2.5 * rows + 1.2), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex="row")
    styles = {method: _style(i) for i, method in enumerate(dict.fromkeys(r["method"] for r in records))}
    points: dict[str, Any] = {}
    for axis in grid.flatten():
        axis.set_visible(False)
    for workload in workloads:
        row, column = models.index(workload["model"]), settings.index((workload["size"], workload["threads"]))
        axis = grid[row, column]
        axis.set_visible(True)
        for r in records:
            if any(r[key] != value for key, value in workload.items()):
                continue
            size = _megabytes(r["method"], workload["model"], files)
            if size is not None:
                ours = r["method"].startswith("qsam2")
                points[r["method"]] = axis.scatter(
                    size, r["ms"], s=110 if ours else 35, **styles[r["method"]] | ({"marker": "*"} if ours else {})
                )
        axis.set(xscale="log", yscale="log")
        axis.set_title("{model}, {size} px, threads: {threads}".format(**workload), fontsize=9)
        if row == rows - 1:
            axis.set_xlabel("model, MB")
        if column == 0:
            axis.set_ylabel(f"{ENCODER}, ms")
        axis.tick_params(labelsize=8)
        for direction in (axis.xaxis, axis.yaxis):
            direction.set_major_locator(needed("matplotlib.ticker").LogLocator(subs=(1, 2, 5)))
            direction.set_major_formatter("{x:g}")
            direction.set_minor_formatter("")
        axis.grid(visible=True, which="both", alpha=0.2)
    if points:
        names = max(2, min(6, round(1.5 * columns)))
        figure.legend(points.values(), points.keys(), loc="outside lower center", ncols=names, fontsize=8)
    return figure


def _style(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "marker": "osD"[number // 10 % 3]}


def _megabytes(method: str, model: str, files: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the packed file, or of all weights at the bits of the method."""
    kind, _, preset = method.partition(" ")
    if kind == "qsam2":
        packed = find(files, model=model, file=preset.lower().partition(",")[0])
        return packed["file_bytes"] / 1e6 if packed else None
    checkpoint = find(files, model=model, file=CHECKPOINT)
    bits = next((bits for name, bits in _WEIGHT_BITS.items() if name in method), None)
    return checkpoint["file_bytes"] / 1e6 * bits / 16 if checkpoint and bits else None


def growth(records: Sequence[Mapping[str, Any]], methods: Sequence[str] = (REFERENCE, "qsam2 W4A8")) -> Figure | None:
    """Time of the image encoder against pixels, and of memory attention against memory frames.

    Returns:
        The figure; None where neither was measured more than once.
    """
    figure = new_figure(figsize=(12, 5.5), layout="constrained")
    pixels, frames = figure.subplots(1, 2)
    models = list(dict.fromkeys(r["model"] for r in records))
    largest = max((r["size"] for r in records), default=0)
    lines: dict[str, Any] = {}
    for model, threads in dict.fromkeys((r["model"], r["threads"]) for r in records):
        for method in methods:
            rows = [r for r in records if (r["model"], r["threads"], r["method"]) == (model, threads, method)]
            against_pixels = [(r["size"] ** 2 / 1e6, r["ms"]) for r in rows if r["part"] == ENCODER]
            against_frames = [
                (int(r["part"].split(", ")[1].split()[0]), r["ms"])
                for r in rows
                if r["part"].startswith("memory attention") and r["size"] == largest
            ]
            style = {
                "color": f"C{models.index(model)}",
                "linestyle": "-" if threads == 1 else "--",
                "marker": "o" if method == REFERENCE else "*",
            }
            for axis, points in ((pixels, against_pixels), (frames, against_frames)):
                if len(points) > 1:  # one shows no growth
                    (line,) = axis.plot(*zip(*sorted(points), strict=True), **style)
                    lines.setdefault(f"{model}, threads: {threads}, {method}", line)
    pixels.set(xlabel="megapixels", ylabel=f"{ENCODER}, ms", xlim=(0, None), ylim=(0, None))
    frames.set(xlabel="memory frames", ylabel=f"memory attention at {largest} px, ms", xlim=(0, None), ylim=(0, None))
    for axis in (pixels, frames):
        axis.grid(visible=True, alpha=0.2)
        axis.set_visible(bool(axis.lines))
    if not lines:
        return None
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize=8, handlelength=4)
    return figure
