"""``qsam2 benchmark``: what the project claims, measured."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import QConfigError
from ..files import check_output_folder
from .benchmark_gpu import gpu
from .benchmark_inference import inference
from .benchmark_training import training
from .benchmark_video import video
from .common import Json, print_json

app = typer.Typer(help="Measure what the project claims.", no_args_is_help=True)
app.command()(training)
app.command()(inference)
app.command()(video)
app.command()(gpu)

Names = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only these; may be given several times.")]


@app.command()
def accuracy(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Results, report and plots.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few experiments on fewer videos, in minutes.")] = False,
    real: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Real pictures: FOLDER holds train, validation and test.", show_default=False
        ),
    ] = None,
    model: Names = None,
    method: Names = None,
    setting: Names = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of training.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training.", show_default=False)] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="RATE", help="Learning rate of all, which is not searched for.", show_default=False
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = os.cpu_count() or 1,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run no experiments.")] = False,
    as_json: Json = False,
) -> None:
    """Compare quantizers on an embedded model: same start, data, steps, bits and layers for all.

    Without --real it is the small one, on procedural scenes; with it the one for real pictures.

    Finished experiments are kept in accuracy_cells.jsonl, and the same command goes on from there. By default they are
    in benchmarks/results (benchmarks/results/real), or outputs/benchmark-quick with --quick.

    Example: [bold]qsam2 benchmark accuracy --quick[/bold]
    """
    from ..benchmark.accuracy.data import PROCEDURAL, BenchmarkData, RealData
    from ..benchmark.accuracy.experiment import QUICK, REAL, REAL_QUICK, Budget
    from ..benchmark.accuracy.plan import full_plan, quick_plan, real_plan, real_quick_plan, select
    from ..benchmark.accuracy.publish import publish
    from ..training.qat import Rates

    folder = output or Path("outputs/benchmark-quick" if quick else "benchmarks/results") / ("real" if real else "")
    check_output_folder(folder)
    data: BenchmarkData = PROCEDURAL
    if real is not None:
        data = RealData(str(real))
        data.check()
        budget, plan = (REAL_QUICK, real_quick_plan()) if quick else (REAL, real_plan(seeds))
    else:
        budget, plan = (QUICK, quick_plan()) if quick else (Budget(), full_plan(seeds))
    if steps is not None:
        budget = replace(budget, steps=steps)
    if lr is not None:
        budget = replace(budget, rates=(Rates(lr),))
    units = select(plan, model, method, setting)
    if not units and not report_only:
        raise QConfigError(
            "no experiment has these models, methods and settings; see the tables of the report for names"
        )
    command = "qsam2 benchmark accuracy" + (" --quick" if quick else "") + (" --real FOLDER" if real else "")
    command += (f" --steps {steps}" if steps else "") + (f" --lr {lr}" if lr is not None else "")
    results = publish(units, folder, budget, data, command=command, workers=workers, report_only=report_only)
    if as_json:
        print_json(results.records())
        return
    typer.echo(f"{len(results.all_experiments)} experiments: {folder / 'accuracy.md'}")
