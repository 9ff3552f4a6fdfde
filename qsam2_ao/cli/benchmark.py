"""``qsam2 benchmark``: what the project claims, measured."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import QConfigError
from ..files import atomic_write
from .common import Json, note, print_json
from .inference_speed import inference
from .training_cost import training

app = typer.Typer(help="Measure what the project claims.", no_args_is_help=True)
app.command()(training)
app.command()(inference)

Names = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only these; may be given several times.")]


@app.command()
def accuracy(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Results, report and plots.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few cells on fewer videos, in minutes.")] = False,
    model: Names = None,
    method: Names = None,
    setting: Names = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of training.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training.", show_default=False)] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread each.")] = os.cpu_count() or 1,
    report_only: Annotated[bool, typer.Option("--report-only", help="Compute no cells.")] = False,
    as_json: Json = False,
) -> None:
    """Compare quantizers on the embedded model: same start, data, steps, bits and layers for all.

    Finished cells are kept in FOLDER/accuracy_cells.jsonl, and the same command goes on from there. By default
    FOLDER is benchmarks/results, or outputs/benchmark-quick with --quick.

    Example: [bold]qsam2 benchmark accuracy --quick[/bold]
    """
    from ..benchmark.accuracy.cell import QUICK, Budget
    from ..benchmark.accuracy.illustrate import illustrate_training, illustrate_weights
    from ..benchmark.accuracy.plan import full_plan, quick_plan, select
    from ..benchmark.accuracy.plots import accuracy_against_bits, accuracy_against_bytes
    from ..benchmark.accuracy.report import markdown
    from ..benchmark.accuracy.results import Results
    from ..benchmark.accuracy.run import run_plan
    from ..benchmark.accuracy.store import CellStore
    from ..benchmark.environment import environment
    from ..reporting.figures import save_figure

    folder = output or Path("outputs/benchmark-quick" if quick else "benchmarks/results")
    budget = QUICK if quick else Budget()
    if steps is not None:
        budget = replace(budget, steps=steps)
    units = select(quick_plan() if quick else full_plan(seeds), model, method, setting)
    if not units and not report_only:
        raise QConfigError("no cell has these models, methods and settings; see the tables of the report for names")
    store = CellStore(folder / "accuracy_cells.jsonl")
    if not report_only:
        run_plan(units, store, budget, workers=workers)
    results = Results(store.read())
    command = "qsam2 benchmark accuracy" + (" --quick" if quick else "") + (f" --steps {steps}" if steps else "")
    records = results.records()
    with atomic_write(folder / "accuracy.json") as temporary:
        temporary.write_text(json.dumps(records, indent=1))
    note("drawing")
    plots = {
        "J&F against bits": save_figure(accuracy_against_bits(results), folder / "accuracy_bits.png"),
        "J&F against bytes": save_figure(accuracy_against_bytes(results), folder / "accuracy_bytes.png"),
    }
    weights, shapes = illustrate_weights(folder, budget)
    plots["A weight before and after VRC"] = weights
    trained = illustrate_training(folder, budget, results)
    titles = {"ranges": "LSC's ranges over training, W2A4", "masks": "Masks at W2A4, heavy-tailed"}
    plots |= {titles[name]: path for name, path in trained.items()}
    report = folder / "accuracy.md"
    files = {caption: path.name for caption, path in plots.items()}
    with atomic_write(report) as temporary:
        temporary.write_text(markdown(results, budget, environment(), command, shapes, files))
    if as_json:
        print_json(records)
        return
    typer.echo(f"{len(results.all_cells)} cells: {report}")
