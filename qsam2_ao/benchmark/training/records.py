"""Memory of training, and cost of calibration, as records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from .memory import alone, calibration_cost, training_memory
from .steps import peak_memory
from .trainee import Trainee, Workload

_GIB = 1 << 30


def memory_records(
    workload: Workload, methods: Sequence[str], *, device: str = "cpu", progress: bool = True
) -> list[dict[str, Any]]:
    """Peak memory of training by each method, in GiB."""
    records = []
    for method in tqdm(methods, desc=f"{workload.model}: memory", unit="method", disable=not progress):
        if device == "cpu":
            taken = alone(training_memory, workload, method)
        else:
            taken = peak_memory(Trainee(workload, method, device=device))
        row = {"workload": str(workload), "device": device, "mode": "eager", "method": method}
        records.append({**row, "metric": "memory GiB", "value": round(taken / _GIB, 4)})
    return records


def calibration_records(workload: Workload, count: int) -> list[dict[str, Any]]:
    """Time and memory of VRC beside the forward passes over the same images."""
    cost = alone(calibration_cost, workload, count)
    where = f"image encoder of {workload.model}, {count} images of {workload.size} px"
    row = {"workload": where, "device": "cpu", "mode": "eager", "method": "VRC"}
    return [
        {**row, "metric": "forward seconds", "value": round(cost["forward seconds"], 2)},
        {**row, "metric": "time ratio", "value": round(cost["VRC seconds"] / cost["forward seconds"], 3)},
        {**row, "metric": "memory GiB", "value": round(cost["VRC memory"] / _GIB, 3)},
    ]
