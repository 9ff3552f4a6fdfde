"""``qsam2 benchmark``: what the project claims, measured."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import QConfigError
from ..files import check_output_folder
from .benchmark_inference import inference
from .benchmark_training import training
from .benchmark_video import video
from .common import Json, print_json

app = typer.Typer(help="Measure what the project claims.", no_args_is_help=True)
app.command()(training)
app.command()(inference)
app.command()(video)

Names = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only these; may be given several times.")]


@app.command()
def accuracy(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Results, report and plots.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few experiments on fewer videos, in minutes.")] = False,
    model: Names = None,
    method: Names = None,
    setting: Names = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of training.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training.", show_default=False)] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = os.cpu_count() or 1,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run no experiments.")] = False,
    as_json: Json = False,
) -> None:
    """Compare quantizers on the embedded model: same start, data, steps, bits and layers for all.

    Finished experiments are kept in FOLDER/accuracy_cells.jsonl, and the same command goes on from there. By default
    FOLDER is benchmarks/results, or outputs/benchmark-quick with --quick.

    Example: [bold]qsam2 benchmark accuracy --quick[/bold]
    """
    from ..benchmark.accuracy.experiment import QUICK, Budget
    from ..benchmark.accuracy.plan import full_plan, quick_plan, select
    from ..benchmark.accuracy.publish import publish

    folder = output or Path("outputs/benchmark-quick" if quick else "benchmarks/results")
    check_output_folder(folder)
    budget = QUICK if quick else Budget()
    if steps is not None:
        budget = replace(budget, steps=steps)
    units = select(quick_plan() if quick else full_plan(seeds), model, method, setting)
    if not units and not report_only:
        raise QConfigError(
            "no experiment has these models, methods and settings; see the tables of the report for names"
        )
    command = "qsam2 benchmark accuracy" + (" --quick" if quick else "") + (f" --steps {steps}" if steps else "")
    results = publish(units, folder, budget, command=command, workers=workers, report_only=report_only)
    if as_json:
        print_json(results.records())
        return
    typer.echo(f"{len(results.all_experiments)} experiments: {folder / 'accuracy.md'}")
