"""``qsam2 vos-inference``: SAM2's own script for benchmarks, with a quantized model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Checkpoint, ModelName, Target


def vos_inference(
    context: typer.Context,
    model: ModelName,
    script: Annotated[
        Path,
        typer.Argument(
            metavar="SCRIPT", help="tools/vos_inference.py of a clone of facebookresearch/sam2.", show_default=False
        ),
    ],
    checkpoint: Checkpoint = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="cpu, cuda, ...; by default cuda, if there is any.", show_default=False),
    ] = None,
    target: Target = "auto",
) -> None:
    """Run SAM2's tools/vos_inference.py as it is, with any model that this package loads.

    What follows SCRIPT are its own options, without --sam2_cfg and --sam2_checkpoint.

    Example: [bold]qsam2 vos-inference tiny-w4a8.safetensors sam2/tools/vos_inference.py --base_video_dir
    DAVIS/JPEGImages/480p --input_mask_dir DAVIS/Annotations/480p --output_mask_dir masks[/bold]
    """
    from ..workflow.vos_inference import vos_inference as run

    run(model, script, context.args, checkpoint=checkpoint, device=device, target=target)
