"""``qsam2 quantize``: a float model -> one packed file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import QConfigError
from .common import (
    EMBEDDED,
    PRESET_NAMES,
    Checkpoint,
    Device,
    FloatModelName,
    Json,
    MaxPixels,
    data_source,
    is_other_rank,
    print_json,
)
from .training_options import (
    BF16,
    EMA,
    Accumulate,
    Augment,
    BatchSize,
    Frames,
    Freeze,
    LogDir,
    Objects,
    RangeRate,
    Rate,
    TrainData,
    ValData,
    ValidateEvery,
    Workers,
    training_settings,
)


def quantize(
    context: typer.Context,
    model: FloatModelName,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The packed .safetensors file.", show_default=False)
    ],
    preset: Annotated[
        str | None, typer.Option(help=f"One of {PRESET_NAMES}; w4a8 by default.", show_default=False)
    ] = None,
    bits_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Bits by layer, of qsam2 sensitivity, not a preset.", show_default=False),
    ] = None,
    activation_bits: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=16,
            help="With --bits-file: bits of the inputs, 2 to 8 (the default); 16 keeps them in float.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Images, or 'embedded' for procedural ones.", show_default=False),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Calibrate on at most so many.")] = 50,
    steps: Annotated[int, typer.Option(min=0, help="Training steps; 0 is post-training quantization.")] = 0,
    first_last_bits: Annotated[
        int | None,
        typer.Option(
            min=2, max=8, help="Bits of first and last layers and attention to prompts; usually 8.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    max_pixels: MaxPixels = None,
    train_data: TrainData = None,
    val_data: ValData = None,
    validate_every: ValidateEvery = None,
    lr: Rate = None,
    range_lr: RangeRate = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    bf16: BF16 = False,
    frames: Frames = None,
    objects: Objects = None,
    freeze: Freeze = None,
    ema: EMA = None,
    augment: Augment = False,
    workers: Workers = None,
    log_dir: LogDir = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Calibrate a float model, train it if --steps says so, and pack it. Run again, it goes on where it stopped.

    Under torchrun or srun the processes share the training's batches.

    Example: [bold]qsam2 quantize sam2.1-t --checkpoint sam2.1_hiera_tiny.pt --preset w4a8
    --calibration photographs/ --train-data DAVIS/ --steps 500 -o tiny-w4a8.safetensors[/bold]
    """
    from ..recipe import PRESETS
    from ..reporting.size import file_size, human_bytes, model_size
    from ..sensitivity import Assignment
    from ..spelling import unknown_name
    from ..workflow.quantize import QuantizationJob, quantize_to_file

    if preset is not None and preset not in PRESETS:
        raise QConfigError(unknown_name("preset", preset, PRESETS))
    training = training_settings(context)  # which has the options that are named nowhere else here
    if bits_file is None:
        if activation_bits is not None:
            raise QConfigError("--activation-bits goes with --bits-file; a preset says the bits of the inputs itself")
        job = QuantizationJob(preset or "w4a8", images, training, seed, first_last_bits)
    else:
        if preset is not None or first_last_bits is not None:
            raise QConfigError("--bits-file says the bits of every weight: leave --preset and --first-last-bits out")
        activation_bits = activation_bits or 8
        if 8 < activation_bits < 16:
            raise QConfigError(f"--activation-bits {activation_bits}: inputs have 2 to 8 bits, or 16 for float")
        inputs = None if activation_bits == 16 else activation_bits
        job = QuantizationJob.mixed(Assignment.load(bits_file), inputs, images=images, training=training, seed=seed)
    quantized = quantize_to_file(
        model,
        job,
        output,
        calibration=data_source("--calibration", calibration, model),
        train_data=data_source("--train-data", train_data, model) if training else EMBEDDED,
        val_data=None if val_data is None else data_source("--val-data", val_data, model),
        checkpoint=checkpoint,
        device=device,
        log_dir=log_dir,
    )
    if is_other_rank():
        return
    size, file_bytes = model_size(quantized), file_size(output)
    if as_json:
        print_json({"file": str(output), "file_bytes": file_bytes, **job.recorded, "size": size.to_dict()})
        return
    typer.echo(
        f"wrote {output}: {human_bytes(file_bytes)}, {size.bfloat16_bytes / file_bytes:.1f} times smaller than "
        f"bfloat16 (qsam2 inspect {output} shows every layer)"
    )
