"""``qsam2 sensitivity``: what quantizing each layer costs, and the bits of each layer that fit a size."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import QConfigError, QSAM2Error
from ..files import atomic_write
from .common import EMBEDDED, Checkpoint, Device, Json, ModelName, console, load_model, note, print_json
from .workspace import Workspace, fingerprint

if TYPE_CHECKING:
    from rich.table import Table

    from ..sensitivity import Assignment, Sensitivity

SHOWN = 12
ROUNDING_NAMES = "nearest, gptq"


def sensitivity(
    model: ModelName,
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
        typer.Option(metavar="FOLDER", help="For jf: a DAVIS folder, or 'embedded'.", show_default=False),
    ] = None,
    videos: Annotated[int, typer.Option(min=1, help="For jf: the first so many videos.")] = 8,
    vrc: Annotated[bool, typer.Option(help="Calibrate the image encoder's weights first, as quantize does.")] = True,
    rounding: Annotated[str, typer.Option(help=f"One of {ROUNDING_NAMES}; quantize uses gptq.")] = "gptq",
    first_and_last: Annotated[
        bool, typer.Option("--first-and-last", help="Choose the first and last layers' bits too, instead of 8.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Quantize one layer at a time, measure what it costs, and choose bits for each layer within a size.

    Writes sensitivity.json, bits.json (for qsam2 quantize --bits-file) and one plot per region. Measured layers are
    kept in FOLDER/work: run again after an interruption, or with another budget, it measures no layer twice.

    Example: [bold]qsam2 sensitivity embedded --budget w3 -o out && qsam2 quantize embedded --bits-file out/bits.json
    -o mixed.safetensors[/bold]
    """
    from ..calibration.rounding import ROUNDINGS
    from ..graph import REGIONS
    from ..reporting.figures import save_figure
    from ..reporting.size import human_bytes
    from ..sensitivity import assign_bits, budget_bytes, measure_sensitivity, quantizable_layers
    from ..sensitivity.assign import check_budget
    from ..sensitivity.measure import METRICS
    from ..sensitivity.plot import region_figure
    from ..stage import stage_of
    from .pipeline import calibration_source, data_source

    widths = _parse_bits(bits)
    if metric not in METRICS:
        raise QConfigError(f"--metric {metric}: choose one of {', '.join(METRICS)}")
    if rounding not in ROUNDINGS:
        raise QConfigError(f"--rounding {rounding}: choose one of {', '.join(ROUNDINGS)}")
    calibration = data_source("--calibration", calibration, model)
    if metric == "jf":
        data = data_source("--data", data, model)
    loaded = load_model(model, checkpoint, device)
    if stage_of(loaded).layers:
        raise QSAM2Error(f"{model} is quantized already; measure its float model instead")
    layers = quantizable_layers(loaded)
    size = budget_bytes(budget, layers)
    check_budget(layers, size, widths[0], first_and_last=first_and_last)
    work = Workspace(
        output / "work",
        {
            "model": fingerprint(model),
            "checkpoint": fingerprint(checkpoint),
            "calibration": fingerprint(calibration),
            "images": images,
            "bits": widths,
            "metric": metric,
            "data": [fingerprint(data), videos] if metric == "jf" else None,
            "vrc": vrc,
            "rounding": rounding,
            "seed": seed,
            "versions": {name: importlib.metadata.version(name) for name in ("qsam2_ao", "torch")},
        },
    )
    measured = measure_sensitivity(
        loaded,
        calibration_source(calibration, images, loaded.image_size),
        bits=widths,
        metric=metric,
        sequences=_sequences(str(data), videos) if metric == "jf" else (),
        vrc="auto" if vrc else None,
        rounding=rounding,
        max_images=images,
        seed=seed,
        remember=work.result,
    )
    assignment = assign_bits(measured, size, first_and_last=first_and_last)
    result = {"model": model, **measured.to_dict()}
    with atomic_write(output / "sensitivity.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False))
    assignment.save(output / "bits.json")
    note("drawing")
    for region in REGIONS:
        save_figure(region_figure(measured, region, assignment), output / f"{region}.png")
    if as_json:
        print_json({**result, "assignment": assignment.to_dict()})
        return
    console().print(_layers_table(measured, assignment))
    console().print(_assignment_table(measured, assignment))
    typer.echo(
        f"{human_bytes(assignment.bytes)} of packed weights, {human_bytes(assignment.budget)} allowed: "
        f"qsam2 quantize {model} --bits-file {output / 'bits.json'} -o FILE"
    )


def _parse_bits(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise QConfigError(f"--bits {text}: give bit-widths separated by commas, such as 2,3,4,8") from error
    if not all(2 <= width <= 8 for width in widths):
        raise QConfigError(f"--bits {text}: bit-widths are 2 to 8")
    return widths


def _sequences(data: str, videos: int) -> Sequence[Any]:
    """Videos to track; embedded ones are of the validation split, so that the test split stays unseen."""
    from ..data.davis import read_davis
    from ..data.procedural import generate_split

    return list(generate_split("val", videos, num_frames=8)) if data == EMBEDDED else read_davis(data)[:videos]


def _layers_table(measured: Sensitivity, assignment: Assignment) -> Table:
    """The layers that lose the most at the fewest bits."""
    from rich.table import Table

    fewest = measured.bits[0]
    names = sorted((layer.name for layer in measured.layers), key=lambda name: -measured.loss(name, fewest))[:SHOWN]
    table = Table(title=f"The {len(names)} most sensitive of {len(measured.layers)} layers", title_justify="left")
    table.add_column("layer", overflow="fold")
    for bits in measured.bits:
        table.add_column(f"loss at {bits} bits", justify="right", no_wrap=True)
    table.add_column("chosen", justify="right", no_wrap=True)
    for name in names:
        losses = (f"{measured.loss(name, bits):.2g}" for bits in measured.bits)
        table.add_row(name, *losses, f"{assignment.bits.get(name, assignment.first_last_bits)} bits")
    return table


def _assignment_table(measured: Sensitivity, assignment: Assignment) -> Table:
    """How many layers of each region get how many bits."""
    from rich.table import Table

    from ..graph import REGIONS

    table = Table(title="Layers by bits", title_justify="left")
    table.add_column("region")
    for bits in measured.bits:
        table.add_column(f"{bits} bits", justify="right")
    table.add_column("first, last", justify="right")
    for region in REGIONS:
        names = [layer.name for layer in measured.layers if layer.region == region]
        counts = [sum(assignment.bits.get(name) == bits for name in names) for bits in measured.bits]
        table.add_row(region, *map(str, counts), str(len(names) - sum(counts)))
    return table
