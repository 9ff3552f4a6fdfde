"""The section of the report on machines that do other things too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .busy import ONE_THREAD, QUIET, beside, together

Record = Mapping[str, Any]
Target = tuple[str, str, float, float, bool]

#: With twice as many busy processes as cores, a core's third is left for each of the model's threads.
BESIDE_LIMIT = 3.0
#: Cores share the work of one model more than they are: 1.5 with two.
TOGETHER_LIMIT = 1.7


def busy_targets(records: Sequence[Record]) -> list[Target]:
    """Where, what, the measured ratio, the limit, and False: it is the most allowed."""
    rows: list[Target] = []
    for (model, size, method), seconds in _by_method(records).items():
        cores = _cores(records, model)
        where = f"{model}, {size} px, {method}"
        for name, reference, limit in (
            (beside(2 * cores), QUIET, BESIDE_LIMIT),
            (together(cores), ONE_THREAD, TOGETHER_LIMIT),
        ):
            if {name, reference} <= seconds.keys():
                ratio = seconds[name]["seconds"] / seconds[reference]["seconds"]
                rows.append((where, f"{name} / {reference}", ratio, limit, False))
    return rows


def busy_section(records: Sequence[Record]) -> list[str]:
    """Lines of Markdown."""
    lines = ["", "## On a busy machine", "", _TEXT]
    for model in dict.fromkeys(r["model"] for r in records):
        chosen = [r for r in records if r["model"] == model]
        names = list(dict.fromkeys(r["situation"] for r in chosen))
        cores, rounds = _cores(chosen, model), chosen[0]["rounds"]
        lines += ["", f"### {model}, {chosen[0]['size']} px, cores: {cores}, rounds: {rounds}", ""]
        lines += [f"| method | {' | '.join(f'{name}, s' for name in names)} |", "|---" * (len(names) + 1) + "|"]
        for (_, _, method), seconds in _by_method(chosen).items():
            cells = [_cell(seconds, name, cores) for name in names]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def _cell(seconds: Mapping[str, Record], name: str, cores: int) -> str:
    if name not in seconds:
        return "-"
    r = seconds[name]
    reference = ONE_THREAD if name == together(cores) else QUIET
    ratio = ""
    if name not in (QUIET, ONE_THREAD) and reference in seconds:
        ratio = f", {r['seconds'] / seconds[reference]['seconds']:.2f}x"
    return f"{r['seconds']:.2f} (load {r['load_seconds']:.2f}{ratio})"


def _by_method(records: Sequence[Record]) -> dict[tuple[str, int, str], dict[str, Record]]:
    found: dict[tuple[str, int, str], dict[str, Record]] = {}
    for r in records:
        found.setdefault((r["model"], r["size"], r["method"]), {})[r["situation"]] = r
    return found


def _cores(records: Sequence[Record], model: str) -> int:
    return int(next(r["cores"] for r in records if r["model"] == model))


_TEXT = (
    "What `qsam2 evaluate` does on videos once its modules are imported: load, track, score the masks; until the last\n"
    "of the processes is through. Ratios are to the same method on a quiet machine; those of several models at once\n"
    "are to one of them on one thread, which is one core's work. Threads that wait for others sleep after a few\n"
    "microseconds, as in the command line (`qsam2_ao/openmp.py`), unless the method says otherwise."
)
