"""``qsam2 finetune``: a float model, trained on the user's videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Checkpoint, Device, FloatModelName, Json, data_source, is_other_rank, print_json
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
    Rate,
    TrainData,
    ValData,
    ValidateEvery,
    Workers,
    training_settings,
)


def finetune(
    context: typer.Context,
    model: FloatModelName,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .pt checkpoint.", show_default=False)
    ],
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 1000,
    lr: Rate = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    train_data: TrainData = None,
    val_data: ValData = None,
    validate_every: ValidateEvery = None,
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
    """Train a float model on videos of yours, before it is quantized. Run again, it goes on where it stopped.

    Under torchrun or srun the processes share the batches.

    Example: [bold]qsam2 finetune sam2.1_hiera_tiny.pt --train-data MINE/ --steps 2000 -o mine.pt[/bold]
    """
    from ..workflow.finetune import finetune_to_file

    settings = training_settings(context)  # which has the options that are named nowhere else here
    assert settings is not None, "--steps is at least 1"
    result = finetune_to_file(
        model,
        settings,
        output,
        train_data=data_source("--train-data", train_data, model),
        val_data=None if val_data is None else data_source("--val-data", val_data, model),
        checkpoint=checkpoint,
        device=device,
        seed=seed,
        log_dir=log_dir,
    )
    if is_other_rank():
        return
    selected = result.selected
    assert selected is not None
    if as_json:
        held_out = {str(step): loss for step, loss in sorted(selected.judged.items())}
        print_json(
            {"file": str(output), "kept_step": selected.step, "held_out": held_out, "training": settings.recorded}
        )
        return
    typer.echo(f"wrote {output}; {selected}")
