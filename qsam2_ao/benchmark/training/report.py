"""The cost benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..accuracy.methods import FLOAT
from .trainee import FUSED

OURS = "LSC"


def _value(records: Sequence[Mapping[str, Any]], **wanted: str) -> float | None:
    for record in records:
        if all(record.get(key) == value for key, value in wanted.items()):
            return float(record["value"])
    return None


def _targets(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float, float]]:
    """Where, what, what is measured, and the most that is wanted."""
    rows = []
    for where, device, mode in dict.fromkeys((r["workload"], r["device"], r["mode"]) for r in records):
        place = {"workload": where, "device": device, "mode": mode}
        label = f"{where}, {device}, {mode}"

        def measured(method: str, metric: str, place: Mapping[str, str] = place) -> float | None:
            return _value(records, method=method, metric=metric, **place)

        ours, fused = measured(OURS, "step ratio"), measured(FUSED, "step ratio")
        if ours is not None:
            rows.append((label, "step by LSC / float step", ours, 1.3))
            if fused is not None:
                rows.append((label, f"step by LSC / by {FUSED}", ours / fused, 1.0))
        memory, reference = measured(OURS, "memory GiB"), measured(FLOAT, "memory GiB")
        if memory is not None and reference:
            rows.append((label, "memory of LSC / float", memory / reference, 1.3))
        vrc = measured("VRC", "time ratio")
        if vrc is not None:
            rows.append((label, "VRC / forward passes over its images", vrc, 1.2))
        vrc_memory = measured("VRC", "memory GiB")
        if vrc_memory is not None:
            rows.append((label, "VRC's memory, GiB", vrc_memory, 3.0))
    return rows


def markdown(
    records: Sequence[Mapping[str, Any]],
    added: Mapping[str, Sequence[tuple[str, float]]],
    environment: Mapping[str, str],
    command: str,
) -> str:
    """The report.

    Args:
        records: As measured.
        added: Per workload: operations and the seconds that they add to a step by LSC.
        environment: Machine and versions.
        command: What was run.
    """
    lines = ["# What training and calibration cost", "", f"`{command}`", ""]
    lines += [f"- {key}: {value}" for key, value in environment.items()]
    lines += ["", "## Targets", "", "| where | what | measured | at most | met |", "|---|---|---|---|---|"]
    lines += [
        f"| {where} | {what} | {value:.2f} | {limit} | {'yes' if value <= limit else 'no'} |"
        for where, what, value, limit in _targets(records)
    ]
    lines += [
        "",
        "## Measured",
        "",
        "W4A8, all layers. A ratio is the median over rounds of ratios to the float step of",
    ]
    lines += ["the same round; the smallest and the largest stand in brackets.", ""]
    lines += ["| where | method | metric | value |", "|---|---|---|---|"]
    for r in records:
        spread = f" [{r['low']:.2f}, {r['high']:.2f}]" if "low" in r else ""
        where = f"{r['workload']}, {r['device']}, {r['mode']}"
        lines.append(f"| {where} | {r['method']} | {r['metric']} | {r['value']:.3g}{spread} |")
    for where, operations in added.items():
        lines += ["", f"## Where LSC's time goes: {where}", "", "| operation | added ms per step |", "|---|---|"]
        lines += [f"| `{name}` | {1e3 * seconds:.1f} |" for name, seconds in operations]
    return "\n".join(lines) + "\n"
