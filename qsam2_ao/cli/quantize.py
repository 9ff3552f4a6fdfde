"""``qsam2 quantize``: a float model -> one packed file."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..data.davis import read_davis
from ..errors import QConfigError, QSAM2Error
from ..qconfig import PRESETS
from ..reporting.size import file_size, human_bytes, model_size
from .common import EMBEDDED, Checkpoint, Device, Json, ModelName, load_model, print_json
from .pipeline import Recipe, calibration_source, quantize_file
from .train_data import clip_batches
from .workspace import Workspace, fingerprint


def quantize(
    model: ModelName,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The packed .safetensors file.", show_default=False)
    ],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "w4a8",
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Images, or 'embedded' for procedural ones.", show_default=False),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Calibrate on at most so many.")] = 50,
    steps: Annotated[int, typer.Option(min=0, help="Training steps; 0 is post-training quantization.")] = 0,
    train_data: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="A DAVIS folder, or 'embedded' for clips.", show_default=False),
    ] = None,
    first_last_bits: Annotated[
        int | None,
        typer.Option(min=2, max=8, help="Bits of the first and last layers; usually 8.", show_default=False),
    ] = None,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Calibrate a float model, train it if --steps says so, and pack it. Run again, it goes on where it stopped.

    Example: [bold]qsam2 quantize sam2.1-t --checkpoint sam2.1_hiera_tiny.pt --preset w4a8
    --calibration photographs/ --train-data DAVIS/ --steps 500 -o tiny-w4a8.safetensors[/bold]
    """
    if preset not in PRESETS:
        raise QConfigError(f"unknown preset {preset!r}; the presets are {', '.join(PRESETS)}")
    calibration = _source("--calibration", calibration, model)
    if steps:
        train_data = _source("--train-data", train_data, model)
    loaded = load_model(model, checkpoint, device)
    if hasattr(loaded, "qsam2_plan"):
        raise QSAM2Error(f"{model} is quantized already; quantize its float model instead")
    recipe = Recipe(preset, images, steps, lr, seed, first_last_bits)
    work = Workspace(
        output.parent / f"{output.name}.work",
        {
            **asdict(recipe),
            "model": fingerprint(model),
            "checkpoint": fingerprint(checkpoint),
            "calibration": fingerprint(calibration),
            "train_data": fingerprint(train_data) if steps else None,
            "versions": {name: importlib.metadata.version(name) for name in ("qsam2_ao", "torch")},
        },
    )
    batches = None
    if steps and train_data != EMBEDDED:
        batches = clip_batches(read_davis(str(train_data)), loaded.image_size, steps, seed=seed, device=device)
    data = calibration_source(calibration, images, loaded.image_size)
    quantized = quantize_file(loaded, recipe, output, work, calibration_data=data, batches=batches)
    work.discard()
    size = model_size(quantized)
    if as_json:
        print_json({"file": str(output), "file_bytes": file_size(output), **asdict(recipe), "size": size.to_dict()})
        return
    typer.echo(
        f"wrote {output}: {human_bytes(file_size(output))}, {size.compression:.1f} times smaller than bfloat16 "
        f"(qsam2 inspect {output} shows every layer)"
    )


def _source(option: str, given: str | None, model: str) -> str:
    if given is None and model != EMBEDDED:
        raise QSAM2Error(f"{option} is missing: name a folder of your data, or 'embedded' for procedural videos")
    if given not in (None, EMBEDDED) and not Path(str(given)).is_dir():
        raise QSAM2Error(f"{option} {given}: no such folder")
    return given or EMBEDDED
