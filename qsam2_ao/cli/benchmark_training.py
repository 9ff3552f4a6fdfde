"""``qsam2 benchmark training``: what training and calibration cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files import check_output_folder
from .common import Device, Json, print_json


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
    from ..benchmark.training.publish import publish
    from ..devices import usable_device

    usable_device(device)  # before the first measurement, which may be a process of its own
    check_output_folder(output)
    records = publish(output, quick=quick, rounds=rounds, images=images, compiled=compiled, device=device)
    if as_json:
        print_json(records)
        return
    typer.echo(f"{len(records)} records: {output / 'training.md'}")
