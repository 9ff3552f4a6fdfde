"""Paired timing: every method in turn, round after round, so that what slows the machine slows them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...progress import tqdm
from ..processes import alone
from .methods import REFERENCE, InferenceMethod
from .parts import ENCODER, VIDEO, Run
from .workload import InferenceWorkload

Clock = Callable[[], float]
ROUNDS = (5, 15)
"""Fewest and most; as many as fit in ``BUDGET_SECONDS``, and two of those that take longer than that."""
BUDGET_SECONDS = 60.0
PAUSE_SECONDS = 0.1
"""Before each run of the encoder: ONNX Runtime is timed there, and its idle threads stay awake for a while."""


def measure(
    workload: InferenceWorkload,
    part: str,
    methods: Sequence[InferenceMethod],
    reference: str = REFERENCE,
    clock: Clock = time.perf_counter,
    *,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Time a part by every method that has it.

    Args:
        workload: Model, size and threads.
        part: A key of ``PARTS``.
        methods: What to compare; ratios need the reference among them.
        reference: The method that ratios are to.
        clock: What tells seconds.
        progress: Whether to show a bar.

    Returns:
        Records {model, part, size, threads, method, ms, spread, vs_float, rounds}: the median, half the distance
        between the quartiles, and the median over rounds of the reference's time over this method's (None without one).
    """
    chosen = [method for method in methods if part in method.parts]
    alone(make_files, workload, chosen)  # quantizing takes more memory than running: not beside all the models
    torch.set_num_threads(workload.threads)
    runs: dict[str, Run] = {}
    with tqdm(chosen, desc=f"{workload.name}, {part}", disable=not progress, unit="method") as bar:
        for method in bar:
            bar.set_postfix_str(f"warming up {method.name}")
            runs[method.name] = method.prepare(workload)(part)
            for _ in range(1 if part == VIDEO else 2):  # compiles, allocates
                runs[method.name]()
    seconds = _rounds(runs, PAUSE_SECONDS if part == ENCODER else 0.0, clock)
    where = {"model": workload.model, "part": part, "size": workload.size, "threads": workload.threads}
    base = seconds.get(reference)
    return [{**where, "method": name, **_summary(values, base)} for name, values in seconds.items()]


def make_files(workload: InferenceWorkload, methods: Sequence[InferenceMethod]) -> None:
    """Make the files that the methods load, where there are none yet."""
    for method in methods:
        if method.file is not None:
            method.file(workload)


def _rounds(runs: Mapping[str, Run], pause: float, clock: Clock) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for count in range(ROUNDS[1]):
        taken = time.perf_counter() - started
        if taken > BUDGET_SECONDS and (count >= ROUNDS[0] or taken > count * BUDGET_SECONDS > BUDGET_SECONDS):
            break
        for name, run in runs.items():
            time.sleep(pause)
            before = clock()
            run()
            seconds[name].append(clock() - before)
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
