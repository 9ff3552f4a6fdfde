"""``qsam2 benchmark inference``: speed, size and memory of deployed models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files import check_output_folder
from .common import Json, print_json


def inference(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Results, report and plots.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="SAM2.1-T at 512 px and four methods, in minutes.")] = False,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these; may be given several times.")
    ] = None,
    size: Annotated[list[int] | None, typer.Option(metavar="PIXELS", help="Only these sizes.")] = None,
    threads: Annotated[list[int] | None, typer.Option(metavar="COUNT", help="Only on so many threads.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these; the reference is always there.")
    ] = None,
    part: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only these, as the tables call them.")] = None,
    as_json: Json = False,
) -> None:
    """Time the parts of SAM2 and both predictors by every method; measure files, loading, compiling and memory.

    Leave the machine alone meanwhile. Finished parts are kept in FOLDER/inference.work, also for other choices of
    models, sizes and threads: the same command goes on from there, and the report shows all that is there. By default
    FOLDER is benchmarks/results, or outputs/inference-quick with --quick.

    Example: [bold]qsam2 benchmark inference --quick[/bold]
    """
    from ..benchmark.inference.publish import publish

    folder = output or Path("outputs/inference-quick" if quick else "benchmarks/results")
    check_output_folder(folder)
    records = publish(folder, quick=quick, models=model, sizes=size, threads=threads, methods=method, parts=part)
    if as_json:
        print_json(records)
        return
    typer.echo(f"{len(records)} records: {folder / 'inference.md'}")
