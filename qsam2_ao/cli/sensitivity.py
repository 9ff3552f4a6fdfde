"""``qsam2 sensitivity``: what quantizing each layer costs, and the bits of each layer that fit a size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import QConfigError
from .common import (
    EMBEDDED,
    Checkpoint,
    Device,
    FloatModelName,
    Json,
    MaxPixels,
    Shard,
    console,
    data_source,
    print_json,
)

ROUNDING_NAMES = "nearest, gptq"


def sensitivity(
    model: FloatModelName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")] = Path(
        "outputs/sensitivity"
    ),
    budget: Annotated[
        str, typer.Option(metavar="w3|BITS|BYTES", help="Size: of uniform 3 bits, average bits up to 8, or bytes.")
    ] = "w3",
    bits: Annotated[str, typer.Option(help="Bit-widths to measure and to choose from.")] = "2,3,4,8",
    metric: Annotated[str, typer.Option(help="sqnr compares outputs; jf tracks videos, which is slow.")] = "sqnr",
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Images, or 'embedded' for procedural ones.", show_default=False),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Use at most so many.")] = 8,
    data: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="For jf: a data set with masks, or 'embedded'.", show_default=False),
    ] = None,
    videos: Annotated[
        int | None, typer.Option(min=1, help="For jf: the first so many videos; 8 by default.", show_default=False)
    ] = None,
    vrc: Annotated[bool, typer.Option(help="Calibrate the image encoder's weights first, as quantize does.")] = True,
    rounding: Annotated[str, typer.Option(help=f"One of {ROUNDING_NAMES}; quantize uses gptq.")] = "gptq",
    first_and_last: Annotated[
        bool, typer.Option("--first-and-last", help="Choose the first and last layers' bits too, instead of 8.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    max_pixels: MaxPixels = None,
    shard: Shard = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Quantize one layer at a time, measure what it costs, and choose bits for each layer within a size.

    Writes sensitivity.json, bits.json (for qsam2 quantize --bits-file) and one plot per region. Measured layers are
    kept in FOLDER/work: run again after an interruption, or with another budget, it measures no layer twice. Started by
    torchrun or srun, or with --shard, each process takes its share of the layers.

    Example: [bold]qsam2 sensitivity embedded --budget w3 -o out && qsam2 quantize embedded --bits-file out/bits.json
    -o mixed.safetensors[/bold]
    """
    from ..calibration.rounding import ROUNDINGS
    from ..reporting.size import human_bytes
    from ..sensitivity.measure import METRICS
    from ..sensitivity.tables import layers_table, regions_table
    from ..workflow.choose_bits import choose_bits
    from ..workflow.shares import share_of

    widths = _parse_bits(bits)
    if metric not in METRICS:
        raise QConfigError(f"--metric {metric}: choose one of {', '.join(METRICS)}")
    if metric != "jf" and (data is not None or videos is not None):
        raise QConfigError(f"{'--videos' if data is None else '--data'} is for --metric jf; sqnr uses --calibration")
    if rounding not in ROUNDINGS:
        raise QConfigError(f"--rounding {rounding}: choose one of {', '.join(ROUNDINGS)}")
    chosen = choose_bits(
        model,
        output,
        budget=budget,
        bits=widths,
        metric=metric,
        calibration=data_source("--calibration", calibration, model),
        images=images,
        data=data_source("--data", data, model) if metric == "jf" else EMBEDDED,
        videos=videos or 8,
        vrc=vrc,
        rounding=rounding,
        first_and_last=first_and_last,
        seed=seed,
        checkpoint=checkpoint,
        device=device,
        share=share_of(shard),
    )
    if chosen is None:
        return
    measured, assignment = chosen
    if as_json:
        print_json({"model": model, **measured.to_dict(), "assignment": assignment.to_dict()})
        return
    options = {"--checkpoint": checkpoint, "--calibration": calibration}
    given = "".join(f" {name} {value}" for name, value in options.items() if value is not None)
    console().print(layers_table(measured, assignment))
    console().print(regions_table(measured, assignment))
    typer.echo(
        f"{human_bytes(assignment.bytes)} of packed weights, {human_bytes(assignment.budget)} allowed: "
        f"qsam2 quantize {model}{given} --bits-file {output / 'bits.json'} -o FILE"
    )


def _parse_bits(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise QConfigError(f"--bits {text}: give bit-widths separated by commas, such as 2,3,4,8") from error
    if not all(2 <= width <= 8 for width in widths):
        raise QConfigError(f"--bits {text}: bit-widths are 2 to 8")
    return widths
