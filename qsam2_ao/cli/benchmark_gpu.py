"""``qsam2 benchmark gpu``: what can be known of a GPU in half an hour."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files import check_output_folder
from .common import Json, print_json


def gpu(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Results and report.", show_default=False)
    ] = Path("benchmarks/results"),
    minutes: Annotated[float, typer.Option(min=0, help="How long the GPU can be had.")] = 30,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these; may be given several times.")
    ] = None,
    size: Annotated[int, typer.Option(min=64, help="Side of the input in pixels.")] = 1024,
    device: Annotated[str, typer.Option(help="Which GPU.")] = "cuda",
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Only quantize the models, beforehand: that needs no GPU.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the kernels on a GPU against the CPU, and time them: encoders, tiles, attention, a training step.

    What matters most comes first. Finished steps are kept in FOLDER/gpu.work, and the same command goes on from there:
    after an interruption, and when the minutes were over. The exit code is 1 where a result is wrong.

    Example: [bold]qsam2 benchmark gpu --minutes 30[/bold]
    """
    from ..benchmark.gpu.publish import MODELS, publish_gpu
    from ..errors import QConfigError
    from ..models.official import OFFICIAL
    from ..spelling import did_you_mean

    if unknown := sorted(set(model or ()) - set(OFFICIAL)):
        raise QConfigError(
            f"unknown model {unknown[0]!r}; choose from {', '.join(OFFICIAL)}{did_you_mean(unknown[0], list(OFFICIAL))}"
        )
    check_output_folder(output)
    found = publish_gpu(
        output, device=device, minutes=minutes, models=tuple(model or MODELS), size=size, prepare=prepare
    )
    if as_json:
        print_json(found)
    elif prepare:
        typer.echo(f"quantized: {output / 'gpu.work/files'}")
    else:
        typer.echo(f"{output / 'gpu.md'}: {len(found['failed'])} steps failed, {len(found['left'])} left")
    if wrong := [record["what"] for record in found.get("correctness", ()) if not record["passed"]]:
        typer.echo(f"wrong results: {', '.join(wrong)}", err=True)
        raise typer.Exit(1)
