"""Paired timing: every method in turn, round after round, so that what slows the machine slows them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from .case import Case
from .methods import BASELINE, Method
from .parts import PARTS, Run

ROUNDS = (3, 15)
"""Fewest and most; as many as fit in ``BUDGET_SECONDS``."""
BUDGET_SECONDS = 60.0


def measure(case: Case, methods: Sequence[Method], *, progress: bool = True) -> list[dict[str, Any]]:
    """Time every part by every method.

    Args:
        case: Model, size and threads.
        methods: What to compare; ratios need the baseline among them.
        progress: Whether to show a bar.

    Returns:
        Records {model, part, size, threads, method, ms, spread, vs_float, rounds}: the median, half the distance
        between the quartiles, and the median over rounds of the baseline's time over this method's (None without one).
    """
    torch.set_num_threads(case.threads)
    records: list[dict[str, Any]] = []
    with tqdm(total=len(methods) + len(PARTS), desc=case.name, disable=not progress, unit="step") as bar:
        prepared = {}
        for method in methods:
            bar.set_postfix_str(f"preparing {method.name}")
            prepared[method.name] = method.prepare(case)
            bar.update()
        for part in PARTS:
            runs: dict[str, Run] = {}
            for method in methods:
                if part in method.parts:
                    bar.set_postfix_str(f"{part}: warming up {method.name}")
                    runs[method.name] = prepared[method.name](part)
                    for _ in range(2):  # compiles, allocates
                        runs[method.name]()
            bar.set_postfix_str(part)
            seconds = _rounds(runs)
            for name, values in seconds.items():
                records.append({"model": case.model, "part": part, "size": case.size, "threads": case.threads})
                records[-1] |= {"method": name, **_summary(values, seconds.get(BASELINE))}
            bar.update()
    return records


def _rounds(runs: Mapping[str, Run]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for count in range(ROUNDS[1]):
        if count >= ROUNDS[0] and time.perf_counter() - started > BUDGET_SECONDS:
            break
        for name, run in runs.items():
            before = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - before)
    return seconds


def _summary(values: Sequence[float], reference: Sequence[float] | None) -> dict[str, Any]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    ratio = None
    if reference is not None:
        ratio = round(statistics.median(b / v for b, v in zip(reference, values, strict=True)), 3)
    return {
        "ms": round(1e3 * statistics.median(values), 3),
        "spread": round(1e3 * (high - low) / 2, 3),
        "vs_float": ratio,
        "rounds": len(values),
    }
