"""``qsam2 benchmark training``: what training and calibration cost."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..files import atomic_write
from .common import Device, Json, note, print_json
from .workspace import Workspace


def training(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Results and report.", show_default=False)
    ] = Path("benchmarks/results"),
    quick: Annotated[bool, typer.Option("--quick", help="The embedded model and three methods, in minutes.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Steps by each method that count.")] = 7,
    images: Annotated[int, typer.Option(min=1, help="Images that VRC's time is measured on.")] = 50,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the image encoder as well, on top.")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure a training step by each quantizer beside the float step, its memory, and VRC beside forward passes.

    Leave the machine alone meanwhile. Writes training.json and training.md. Finished parts are kept in
    FOLDER/training.work until all are done: after an interruption the same command goes on from there.

    Example: [bold]qsam2 benchmark training --quick -o outputs/cost[/bold]
    """
    from ..benchmark.accuracy.methods import FLOAT
    from ..benchmark.environment import environment
    from ..benchmark.training.records import calibration_records, memory_records
    from ..benchmark.training.report import OURS, markdown
    from ..benchmark.training.steps import added_time, measure_steps
    from ..benchmark.training.trainee import COMPARED, EMBEDDED, FUSED, OFFICIAL, VRC_LARGE, VRC_TIMED

    methods = (FLOAT, OURS, FUSED) if quick else COMPARED
    workloads = (EMBEDDED,) if quick else (EMBEDDED, OFFICIAL)
    settings = {"quick": quick, "rounds": rounds, "images": images, "compiled": compiled, "device": device}
    machine = environment()
    work = Workspace(output / "training.work", {**settings, "environment": machine})
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
    with atomic_write(output / "training.json") as temporary:
        temporary.write_text(json.dumps(records, indent=1))
    flags = [f"--rounds {rounds}", f"--images {images}"] + ["--quick"] * quick + ["--compile"] * compiled
    command = " ".join(["qsam2 benchmark training", *flags, f"--device {device}"])
    with atomic_write(output / "training.md") as temporary:
        temporary.write_text(markdown(records, added, machine, command))
    work.discard()
    if as_json:
        print_json(records)
        return
    typer.echo(f"{len(records)} records: {output / 'training.md'}")
