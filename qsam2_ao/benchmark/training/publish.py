"""The benchmark of training as a whole: what is missing is measured, and results and report are written."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from ...files import atomic_write
from ...reporting.environment import environment
from ...reporting.notes import note
from ...workspace import Workspace
from ..accuracy.methods import FLOAT
from . import trainee
from .records import calibration_records, memory_records
from .report import OURS, markdown
from .steps import added_time, measure_steps
from .trainee import COMPARED, FUSED, OFFICIAL, VRC_LARGE, VRC_TIMED


def publish(
    folder: Path,
    *,
    quick: bool = False,
    rounds: int = 7,
    images: int = 50,
    compiled: bool = False,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Measure a training step by each quantizer beside the float step, its memory, and VRC beside forward passes.

    Finished parts are kept in ``training.work`` until all are done: after an interruption a later run goes on.

    Args:
        folder: Where ``training.json`` and ``training.md`` go.
        quick: The embedded model and three methods, in minutes.
        rounds: Steps by each method that count.
        images: Images that VRC's time is measured on.
        compiled: Compile the image encoder as well, on top.
        device: Where to train.

    Returns:
        The records.

    Raises:
        QSAM2Error: A process was killed, or a file cannot be written.

    Example:
        >>> publish(Path("outputs/cost"), quick=True)  # doctest: +SKIP
    """
    methods = (FLOAT, OURS, FUSED) if quick else COMPARED
    workloads = (trainee.EMBEDDED,) if quick else (trainee.EMBEDDED, OFFICIAL)
    settings = {"quick": quick, "rounds": rounds, "images": images, "compiled": compiled, "device": device}
    machine = environment()
    work = Workspace(folder / "training.work", {**settings, "environment": machine})
    records: list[dict[str, Any]] = []
    added: dict[str, list[tuple[str, float]]] = {}
    for workload in workloads:
        name = workload.model
        for mode in (False, True) if compiled else (False,):
            records += work.result(
                f"{name}-steps-{'compiled' if mode else 'eager'}",
                partial(measure_steps, workload, methods, rounds, device=device, compiled=mode),
            )
        records += work.result(f"{name}-memory", partial(memory_records, workload, (FLOAT, OURS, FUSED), device=device))
        if device == "cpu":
            added[str(workload)] = work.result(f"{name}-profile", partial(added_time, workload, OURS))
    if not quick and device == "cpu":
        note("VRC beside forward passes")
        records += work.result("vrc", partial(calibration_records, VRC_TIMED, images))
        records += work.result("vrc-large", partial(calibration_records, VRC_LARGE, 2, timed=False))
    with atomic_write(folder / "training.json") as temporary:
        temporary.write_text(json.dumps(records, indent=1))
    flags = [f"--rounds {rounds}", f"--images {images}"] + ["--quick"] * quick + ["--compile"] * compiled
    command = " ".join(["qsam2 benchmark training", *flags, f"--device {device}"])
    with atomic_write(folder / "training.md") as temporary:
        temporary.write_text(markdown(records, added, machine, command))
    work.discard()
    return records
