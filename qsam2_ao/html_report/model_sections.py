"""The sections about one packed file: what is in it, where it loses accuracy, and how fast its layers are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sam2.modeling.sam2_base import SAM2Base

from ..calibration.images import CalibrationData
from ..checkpoint import read_header
from ..reporting.coverage import CoverageReport, coverage_report
from ..reporting.size import file_size, human_bytes, model_size, tensor_bytes
from ..reporting.speed import layer_times
from ..spelling import counted
from ..stage import stage_of
from ..workflow.models import load_model
from .figures import bars, bits_by_layer, errors_by_layer, input_histogram, region_order, weight_histogram
from .layer_errors import LayerError, layer_errors
from .page import Block, Facts, Section, Table, Text, drawing
from .weights import layer_weights

SHOWN = 6
"""Layers whose histograms are drawn, and rows of tables that are not folded."""
_ELSEWHERE = "elsewhere"
_MUCH_CLIPPED = 0.05
_ALIKE = 3.0
"""Decibels; a layer that adds so much less error than another does not count beside it."""


def model_sections(
    path: Path,
    label: str,
    reference: SAM2Base | None,
    images: CalibrationData,
    what: str = "pictures",
    *,
    time: bool = False,
) -> list[Section]:
    """Everything about a packed file.

    Args:
        path: The file.
        label: What the titles call it.
        reference: The float model that it was made from; without one, what takes it is left out, and the page says so.
        images: To compare the two on.
        what: What these are, in words.
        time: Whether to time every layer as it is fastest here.

    Raises:
        QSAM2Error: It is no packed file, or was made from another model.
    """
    model, info = load_model(str(path)), dict(read_header(path).info or {})
    coverage = coverage_report(model)
    sections = [_summary(path, label, model, coverage, info), _bits(label, coverage)]
    if vrc := _vrc(label, info):
        sections.append(vrc)
    sections.append(
        Section(
            f"Accuracy by layer: {label}",
            [Text("Name the float model with --float, and each layer is compared with it here.")],
        )
        if reference is None
        else _errors(label, model, reference, images, what)
    )
    if time:
        sections.append(_speed(path, label))
    return sections


def _summary(path: Path, label: str, model: SAM2Base, coverage: CoverageReport, info: Mapping[str, Any]) -> Section:
    size, file_bytes = model_size(model), file_size(path)
    facts = {
        "file": f"{path}, {human_bytes(file_bytes)}",
        "recipe": str(info.get("qconfig") or "unknown"),
        "input": f"{model.image_size} x {model.image_size} pixels",
        "in bfloat16": f"{human_bytes(size.bfloat16_bytes)}, {size.bfloat16_bytes / file_bytes:.1f} times the file",
        "bits of a packed weight": f"{size.bits_per_packed_value:.2f}, with scales"
        if size.bits_per_packed_value
        else "-",
        "parameters in quantized layers": f"{100 * coverage.quantized_share:.1f} %",
        "calibrated on": counted(info["images"], "image") if isinstance(info.get("images"), int) else "unknown",
        "seed": str(info.get("seed", "unknown")),
    }
    facts |= {f"written with {name}": str(version) for name, version in dict(info.get("versions") or {}).items()}
    regions = [layer.region or _ELSEWHERE for layer in coverage.layers]
    order = region_order(regions)
    before = dict.fromkeys(order, 0.0)
    now = dict.fromkeys(order, 0.0)
    parts = sorted({layer.region for layer in coverage.layers if layer.region}, key=len, reverse=True)
    paths = {record.part: record.region for record in stage_of(model).layers}
    for name, tensor in model.state_dict(keep_vars=True).items():
        region = next((paths[part] for part in paths if name.startswith(f"{part}.") or name == part), None)
        region = region or next((part for part in parts if name.startswith(f"{part}.")), _ELSEWHERE)
        if region in before:
            before[region] += 2 * tensor.numel() / 1e6
            now[region] += tensor_bytes(tensor) / 1e6
    chart = bars(
        [region.replace("_", " ") for region in order],
        {"bfloat16": list(before.values()), "this file": list(now.values())},
        "MB",
    )
    return Section(
        f"Model: {label}",
        [
            Facts(facts),
            drawing(chart, "Size by part, beside bfloat16; what is not quantized keeps the model's own type."),
        ],
    )


def _bits(label: str, coverage: CoverageReport) -> Section:
    quantized = [layer for layer in coverage.layers if layer.target != "float"]
    chart = bits_by_layer(
        [layer.region or _ELSEWHERE for layer in quantized],
        [layer.weight_bits for layer in quantized],
        [layer.activation_bits if layer.activation_bits < 16 else None for layer in quantized],
    )
    rows = [
        [
            layer.name,
            layer.type,
            "x".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            str(layer.weight_bits),
            str(layer.activation_bits),
            layer.granularity or "-",
            layer.note or "-",
        ]
        for layer in coverage.layers
    ]
    headings = ["layer", "type", "shape", "parameters", "weight bits", "input bits", "scales", "note"]
    return Section(
        f"Bits by layer: {label}",
        [
            drawing(chart, "Bits of every quantized layer, in the order of the model."),
            Table(headings, rows, f"All {len(rows)} layers, with those that stay in float and why", folded=True),
        ],
    )


def _vrc(label: str, info: Mapping[str, Any]) -> Section | None:
    """What the calibration reported, which the file carries."""
    report = info.get("vrc")
    if not isinstance(report, Mapping) or not report.get("layers"):
        return None
    layers = sorted(report["layers"], key=lambda layer: -(layer["quantized_error_after"] or 0))
    before = [layer["quantized_error_before"] or 0 for layer in layers]
    after = [layer["quantized_error_after"] or 0 for layer in layers]
    gained = sum(a < b for a, b in zip(after, before, strict=True))
    headings = ["layer", "error", "largest weight", "kurtosis", "note"]
    rows = [
        [
            layer["layer"],
            *(
                " → ".join(_number(layer[f"{figure}_{when}"]) for when in ("before", "after"))
                for figure in ("quantized_error", "max", "kurtosis")
            ),
            "; ".join([*([f"kept: {layer['refused']}"] if layer["refused"] else []), *layer["warnings"]]) or "-",
        ]
        for layer in layers
    ]
    return Section(
        f"Variance-reduced calibration: {label}",
        [
            Text(
                "VRC shrinks the part of a weight that acts on directions which inputs never have: it widens the range "
                f"to be quantized, and does nothing else. It saw {counted(report['images'], 'image')}; in {gained} of "
                f"{counted(len(layers), 'layer')} the quantized output is closer to the float one than without VRC, "
                "before training."
            ),
            Text(
                "Before → after VRC: the error of the quantized layer as a share of its output's variance, the "
                "largest weight, and the weights' kurtosis (how heavy the tails are; 0 for a normal distribution). A "
                "layer that VRC would not help keeps its weight. cond(G), the condition number of the inputs' "
                "covariance, is large where the images hardly show some directions."
            ),
            Table(headings, rows[:SHOWN], "The layers with the largest error"),
            Table(headings, rows, f"All {len(rows)} calibrated layers", folded=True),
        ],
    )


def _errors(label: str, model: SAM2Base, reference: SAM2Base, images: CalibrationData, what: str) -> Section:
    errors = layer_errors(model, reference, images)
    by_loss = sorted(errors, key=lambda error: error.own)
    headings = ["layer", "weight bits", "input bits", "alone, dB", "so far, dB", "input clipped"]
    rows = [
        [
            error.name,
            str(error.bits),
            "-" if error.activation_bits is None else str(error.activation_bits),
            _decibels(error.own),
            _decibels(error.so_far),
            f"{100 * error.clipped:.2f} %",
        ]
        for error in by_loss
    ]
    blocks: list[Block] = [
        Text(_verdict(errors), important=True),
        Text(
            "SQNR is the signal-to-quantization-noise ratio of a layer's output in decibels, where both models segment "
            f"and track on {what}: 20 dB is an error of a tenth of the signal, 10 dB of a third. Alone: the layer gets "
            "the float model's input, so it shows what this layer adds. So far: all layers before it are quantized as "
            "well. Input clipped: the share of input values outside of the range that the input is quantized in."
        ),
        drawing(errors_by_layer(errors), "Each layer alone (dots), and with what has added up until it (line)."),
        Table(headings, rows[:SHOWN], "The layers that lose most by themselves"),
        Table(headings, rows, f"All {len(rows)} quantized layers", folded=True),
    ]
    records = {record.name: record for record in stage_of(model).layers}
    blocks.append(
        Text(
            "The weights of these layers and their inputs in the float model, counted on a logarithmic axis, with the "
            "ranges that they are clipped to, before calibration and in the file: the median of all scales, shaded "
            "as far as they differ."
        )
    )
    for error in by_loss[:SHOWN]:
        weights = layer_weights(model, reference, records[error.name])
        blocks.append(drawing(weight_histogram(weights), f"{error.name}: weights.", small=True))
        blocks.append(
            drawing(
                input_histogram(error),
                f"{error.name}: input, "
                + (f"{100 * error.clipped:.2f} % outside of its range." if error.clip else "which stays in float."),
                small=True,
            )
        )
    return Section(f"Accuracy by layer: {label}", blocks)


def _verdict(errors: Sequence[LayerError]) -> str:
    """Where to look first."""
    worst = min(errors, key=lambda error: error.own)
    bits = f"{worst.bits} bits, input {f'{worst.activation_bits} bits' if worst.activation_bits else 'in float'}"
    text = f"{worst.name} ({bits}) loses most by itself: {_decibels(worst.own)} dB."
    near = sum(error.own < worst.own + _ALIKE for error in errors) - 1
    text += f" {near} more are within {_ALIKE:.0f} dB of it." if near else ""
    falls = {
        after.name: before.so_far - after.so_far
        for before, after in pairwise(errors)
        if before.region == after.region and before.so_far is not None and after.so_far is not None
    }
    steepest = max(falls, key=lambda name: falls[name] if math.isfinite(falls[name]) else 0.0, default="")
    if steepest and falls[steepest] > 0:
        text += f" With all layers before it, {steepest} is {falls[steepest]:.1f} dB worse than the layer before."
    if worst.clipped > _MUCH_CLIPPED:
        text += f" {100 * worst.clipped:.0f} % of its input lie outside of its range: was it calibrated on such data?"
    return text


def _speed(path: Path, label: str) -> Section:
    """Every layer as it is fastest on this machine, beside float."""
    model = load_model(str(path), target="auto")
    times = layer_times(model)
    slower = [name for name, layer in times.items() if layer.slower]
    longest = sorted(times, key=lambda name: -times[name].ms)
    chart = bars(
        longest[:15],
        {
            "float": [times[name].float_ms for name in longest[:15]],
            "this file": [times[name].ms for name in longest[:15]],
        },
        "ms",
    )
    rows = [
        [
            name,
            "x".join(map(str, times[name].shape)),
            f"{times[name].ms:.3g}",
            f"{times[name].float_ms:.3g}",
            f"{times[name].float_ms / max(times[name].ms, 1e-9):.2f}x",
        ]
        for name in longest
    ]
    total, in_float = sum(t.ms for t in times.values()), sum(t.float_ms for t in times.values())
    return Section(
        f"Speed by layer: {label}",
        [
            Text(
                f"On this machine, target auto: {total:.3g} ms in quantized layers, {in_float:.3g} ms in float "
                f"({in_float / max(total, 1e-9):.2f} times as fast). {len(slower)} of {len(times)} layers are slower."
            ),
            drawing(chart, "The layers that take longest, beside the same layers in float."),
            Table(["layer", "input", "ms", "float, ms", "speed"], rows, f"All {len(rows)} layers", folded=True),
        ],
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if math.isfinite(value) else "no error"
