"""Memory of training, and cost of calibration, as records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...progress import tqdm
from ..processes import alone
from .memory import calibration_cost, training_memory
from .steps import peak_memory
from .trainee import Trainee, TrainingWorkload

_GIB = 1 << 30


def memory_records(
    workload: TrainingWorkload, methods: Sequence[str], *, device: str = "cpu", progress: bool = True
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


def calibration_records(workload: TrainingWorkload, count: int, *, timed: bool = True) -> list[dict[str, Any]]:
    """Time and memory of VRC beside the forward passes over the same images.

    Args:
        workload: Only its model and size matter.
        count: Images.
        timed: Whether they are as many as people calibrate with, so that the ratio of the times means something.
    """
    cost = alone(calibration_cost, workload, count)
    where = f"image encoder of {workload.model}, {count} images of {workload.size} px"
    row = {"workload": where, "device": "cpu", "mode": "eager", "method": "VRC"}
    forward, vrc = cost["forward seconds"], cost["VRC seconds"]
    records = [
        {**row, "metric": "forward seconds", "value": round(forward, 2)},
        {**row, "metric": "added seconds", "value": round(vrc - forward, 2)},
        {**row, "metric": "memory GiB", "value": round(cost["VRC memory"] / _GIB, 3)},
    ]
    return [*records, {**row, "metric": "time ratio", "value": round(vrc / forward, 3)}] if timed else records
