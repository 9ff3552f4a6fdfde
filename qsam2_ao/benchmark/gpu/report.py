"""The benchmark of a GPU as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .encoders import BASELINE

Record = Mapping[str, Any]
_TARGETS = {("sam2.1-t", 1): 1.35}
_TARGET = 1.5
_TRAINING_TARGET = 1.5


def markdown(results: Mapping[str, Any], machine: Mapping[str, str]) -> str:
    """The report of :func:`publish_gpu`'s results."""
    lines = [
        "# On a GPU",
        "",
        "Made by `qsam2 benchmark gpu`. Times are of the GPU's own clock, in milliseconds: the median of 20 calls.",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items()),
        "",
    ]
    for title, section in (
        ("Correctness", _correctness(results.get("correctness", []))),
        ("Image encoder", _encoders(results.get("encoders", []))),
        ("A training step", _training(results.get("training", []))),
        ("Matrix products by tile", _products(results.get("products", []))),
        ("Attention", _attention(results.get("attention", []))),
        ("Where an image's time goes", _profile(results.get("profile", []))),
    ):
        if section:
            lines += [f"## {title}", "", *section, ""]
    if results.get("failed"):
        lines += ["## Failed", "", *(f"- {name}: {why}" for name, why in results["failed"].items()), ""]
    if results.get("left"):
        lines += ["## Not measured, for want of time", "", *(f"- {name}" for name in results["left"]), ""]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    if not rows:
        return []
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join("-" if cell is None else str(cell) for cell in line) + " |" for line in lines]


def _correctness(records: Sequence[Record]) -> list[str]:
    rows = [
        (r["what"], f"{r['worst']:.3g}", f"{r['allowed']:.3g}", "yes" if r["passed"] else "**no**") for r in records
    ]
    return _table(("what", "largest difference", "allowed", "passed"), rows)


def _encoders(records: Sequence[Record]) -> list[str]:
    rows = []
    for r in records:
        base = next(
            (b["ms"] for b in records if b["method"] == BASELINE and _where(b) == _where(r)),
            None,
        )
        target = _TARGETS.get((r["model"], r["batch"]), _TARGET) if r["method"].startswith("qsam2") else None
        ratio = f"{base / r['ms']:.2f}" if base else None
        rows.append((r["model"], r["size"], r["batch"], r["method"], r["ms"], ratio, target, r["memory_mb"]))
    return _table(("model", "px", "batch", "method", "ms", "times as fast as bf16", "target", "peak MB"), rows)


def _where(record: Record) -> tuple[object, ...]:
    return record["model"], record["size"], record["batch"]


def _training(records: Sequence[Record]) -> list[str]:
    rows = [(r["workload"], r["method"], r["metric"], r["value"]) for r in records]
    table = _table(("workload", "method", "metric", "value"), rows)
    return [*table, "", f"The target for LSC is a step ratio of {_TRAINING_TARGET}."] if table else []


def _products(records: Sequence[Record]) -> list[str]:
    rows = []
    for r in records:
        best, chosen = (r["ms"].get(r[key]) for key in ("best", "chosen"))
        lost = f"{chosen / best:.2f}" if best and chosen else None
        shape = f"{r['rows']} x {r['n']} x {r['k']}"
        rows.append((shape, r["bits"], r["chosen"], chosen, r["best"], best, lost, r["int_mm"], r["bf16"]))
    heads = ("rows x n x k", "bits", "chosen", "ms", "best", "ms", "chosen / best", "_int_mm alone", "bf16 alone")
    return _table(heads, rows)


def _attention(records: Sequence[Record]) -> list[str]:
    backends = list(dict.fromkeys(name for r in records for name in r["ms"]))
    return _table(("", *backends), [(r["attention"], *(r["ms"].get(name) for name in backends)) for r in records])


def _profile(records: Sequence[Record]) -> list[str]:
    rows = [(r["step"], r["kernel"][:100].replace("|", "/"), r["calls"], r["us"]) for r in records]
    return _table(("profile", "kernel", "calls", "us"), rows)
