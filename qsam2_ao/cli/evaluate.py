"""``qsam2 evaluate``: J&F and mIoU of a model on the embedded test split or on a DAVIS-style folder."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import QConfigError
from .common import EMBEDDED, Checkpoint, Device, Json, MaxPixels, ModelName, Target, console, print_json


def evaluate(
    model: ModelName,
    data: Annotated[
        str, typer.Option(metavar="FOLDER", help="A DAVIS-style folder, or 'embedded' for the procedural test split.")
    ] = EMBEDDED,
    videos: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many videos (embedded: 64).", show_default=False)
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Frames of each embedded video; 16 by default.", show_default=False)
    ] = None,
    all_frames: Annotated[
        bool,
        typer.Option("--all-frames", help="Score the first and the last annotated frame too, which DAVIS leaves out."),
    ] = False,
    max_pixels: MaxPixels = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    target: Target = "auto",
    as_json: Json = False,
) -> None:
    """Measure J&F on videos, given each first frame's masks, and mIoU on images, given boxes.

    Example: [bold]qsam2 evaluate tiny-w4a8.safetensors --data DAVIS/ --json[/bold]
    """
    from ..evaluation.overall import evaluate_model
    from ..reporting.tables import ModelRow, comparison_table
    from ..workflow.data import videos_with_masks
    from ..workflow.models import load_model

    if frames is not None and data != EMBEDDED:
        raise QConfigError(f"--frames is for embedded videos; those of {data} are tracked whole")
    sequences = videos_with_masks(data, "test", videos, frames or 16)
    loaded = load_model(model, checkpoint, device, target)
    scores = evaluate_model(loaded, sequences, skip_first_and_last=not all_frames, progress=True)
    if as_json:
        print_json({"model": model, "data": data, "videos": len(sequences), **scores})
        return
    title = f"{len(sequences)} videos of {data}, in percent"
    console().print(comparison_table([ModelRow(model, None, None, **scores)], title))
