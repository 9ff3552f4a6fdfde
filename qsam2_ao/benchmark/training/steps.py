"""Time of a training step beside the float model's, taken in turns, and where the added time goes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ...progress import tqdm
from ..accuracy.methods import FLOAT
from .trainee import Trainee, TrainingWorkload

# Rounds in which memory is still claimed from the system, or shapes of prompts come up that are compiled anew.
_WARM_UP = 4


def measure_steps(
    workload: TrainingWorkload,
    methods: Sequence[str],
    rounds: int,
    *,
    device: str = "cpu",
    compiled: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Seconds of a step by each method, and the ratio to the float step of the same round.

    Every round takes one step by each method, in turns, so that a change of the machine's speed meets all of them.

    Args:
        workload: Model and batch.
        methods: Names out of ``COMPARED``; the first is the float model.
        rounds: Rounds that count; those that come first to warm up, or to compile, don't.
        device: Where to train.
        compiled: Compile the image encoder.
        progress: Show a progress bar.

    Returns:
        Records: "metric" is "step seconds" (median) or "step ratio" (median of the rounds' ratios, with the smallest
        and largest as "low" and "high").
    """
    trainees = {}
    with tqdm(total=len(methods) * (1 + _WARM_UP + rounds), unit="step", disable=not progress) as bar:
        for method in methods:
            bar.set_description(f"{workload.model}: {method}")
            trainees[method] = Trainee(workload, method, device=device, compiled=compiled)
            bar.update()
        seconds: dict[str, list[float]] = {method: [] for method in methods}
        for round_ in range(_WARM_UP + rounds):
            for method, trainee in trainees.items():
                bar.set_description(f"{workload.model}: {method}")
                taken = trainee.step(round_)
                if round_ >= _WARM_UP:
                    seconds[method].append(taken)
                bar.update()
    shared = {"workload": str(workload), "device": device, "mode": "compiled" if compiled else "eager"}
    records = []
    for method, values in seconds.items():
        ratios = [value / reference for value, reference in zip(values, seconds[FLOAT], strict=True)]
        row = {**shared, "method": method}
        records.append({**row, "metric": "step seconds", "value": round(statistics.median(values), 4)})
        low, high = round(min(ratios), 3), round(max(ratios), 3)
        ratio = round(statistics.median(ratios), 3)
        records.append({**row, "metric": "step ratio", "value": ratio, "low": low, "high": high})
    return records


def added_time(workload: TrainingWorkload, method: str, *, steps: int = 3, shown: int = 8) -> list[tuple[str, float]]:
    """Operations that take longer in a method's step than in the float one, by torch's profiler on the CPU.

    Args:
        workload: Model and batch.
        method: One of ``COMPARED``.
        steps: Steps to profile.
        shown: How many operations.

    Returns:
        Operation and added seconds of its own per step, the largest first.
    """
    own = {name: _own_seconds(Trainee(workload, name), steps) for name in (FLOAT, method)}
    added = [(name, value - own[FLOAT].get(name, 0.0)) for name, value in own[method].items()]
    return sorted(added, key=lambda item: -item[1])[:shown]


def _own_seconds(trainee: Trainee, steps: int) -> dict[str, float]:
    trainee.step(0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for k in range(steps):
            trainee.step(k)
    return {event.key: event.self_cpu_time_total / steps / 1e6 for event in profiler.key_averages()}


def peak_memory(trainee: Trainee) -> int:
    """Bytes that a step takes at most on a CUDA device."""
    trainee.step(0)
    torch.cuda.reset_peak_memory_stats()
    trainee.step(1)
    return torch.cuda.max_memory_allocated()
