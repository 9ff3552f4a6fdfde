"""One chart of what quantization gives and costs: size, speed and accuracy, from the benchmarks' results.

``python -m qsam2_ao.benchmark.overview`` draws it again after a benchmark.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from ..reporting.figures import new_figure, save_figure
from .inference.footprint import CHECKPOINT
from .inference.methods import REFERENCE
from .inference.parts import ENCODER
from .inference.report import find

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BARS = ("bfloat16", "W8A8", "W4A8", "W2A8")
_COLOURS = ("0.6", "C0", "C0", "C0")
_MODEL = "sam2.1-t"
_METHODS = {"calibrated only": ("VRC+GPTQ", "PTQ W{}A8", "C0"), "trained": ("QSAM2, part by part", "W{}A8", "C1")}
_METRICS = {"J&F": ("J&F", "*"), "mIoU_box": ("box mIoU", "o")}
_BITS = (2, 3, 4)


def overview(
    times: Sequence[Mapping[str, Any]], files: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]]
) -> Figure:
    """Size and speed of SAM 2.1-T, and accuracy of the embedded model for real pictures.

    Args:
        times: The records of ``inference.json``.
        files: The files of ``inference_details.json``.
        scores: The records of ``real_parts/accuracy.json``.

    Returns:
        The figure. Where something was not measured, its bar or line is missing.
    """
    figure = new_figure(figsize=(11, 3.4), layout="constrained")
    size, speed, accuracy = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    _bars(size, [_mebibytes(files, name) for name in _BARS], "{:.1f}")
    size.set(title=f"{_MODEL}: file, MiB")
    where = {"model": _MODEL, "part": ENCODER, "size": 1024, "threads": 2}
    _bars(speed, [_milliseconds(times, where, name) for name in _BARS], "{:.0f}")
    speed.set(title=f"{_MODEL}: {ENCODER}, 1024 px,\nms on two CPU cores")
    for metric, (named, marker) in _METRICS.items():
        for said, (method, setting, colour) in _METHODS.items():
            points = {bits: _score(scores, method, setting.format(bits), metric) for bits in _BITS}
            known = {bits: value for bits, value in points.items() if value is not None}
            if known:
                accuracy.plot(list(known), list(known.values()), f"{colour}{marker}-", label=f"{named}, {said}")
        if (reference := _score(scores, "float", "float", metric)) is not None:
            accuracy.axhline(reference, color="0.4", linestyle=":", label=f"{named}, float")
    accuracy.set(title="small model, real pictures:\naccuracy", xlabel="bits per weight, 8-bit inputs")
    accuracy.set_xticks(_BITS)
    accuracy.set_ylim(0, 1.08 * accuracy.get_ylim()[1])
    accuracy.legend(fontsize=7, loc="lower right")
    accuracy.grid(alpha=0.3)
    return figure


def _bars(axis: Axes, values: Sequence[float | None], form: str) -> None:
    heights = [value or 0.0 for value in values]
    bars = axis.bar(_BARS, heights, color=_COLOURS)
    axis.bar_label(bars, ["" if value is None else form.format(value) for value in values], fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(y=0.12)


def _mebibytes(files: Sequence[Mapping[str, Any]], name: str) -> float | None:
    found = find(files, model=_MODEL, file=CHECKPOINT if name == _BARS[0] else name.lower())
    return found["file_bytes"] / 2**20 if found else None


def _milliseconds(times: Sequence[Mapping[str, Any]], where: Mapping[str, Any], name: str) -> float | None:
    found = find(times, method=REFERENCE if name == _BARS[0] else f"qsam2 {name}", **where)
    return found["ms"] if found else None


def _score(scores: Sequence[Mapping[str, Any]], method: str, setting: str, metric: str) -> float | None:
    wanted = {"model": "plain", "method": method, "setting": setting, "metric": metric}
    values = [r["value"] for r in scores if all(r[key] == value for key, value in wanted.items())]
    return mean(values) if values else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw ``overview.png`` beside the results it shows."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("benchmarks/results"))
    folder = parser.parse_args(arguments).folder
    times, details = (json.loads((folder / name).read_text()) for name in ("inference.json", "inference_details.json"))
    scores = json.loads((folder / "real_parts" / "accuracy.json").read_text())
    print(save_figure(overview(times, details["files"], scores), folder / "overview.png"))


if __name__ == "__main__":
    main()
