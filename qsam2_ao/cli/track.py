"""``qsam2 track``: a clip and first-frame prompts -> a mask PNG for each frame, and an overlay video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Boxes, Checkpoint, Device, Json, Masks, Points, RunnableName, Target, print_json


def track(
    model: RunnableName,
    video: Annotated[
        Path, typer.Argument(metavar="VIDEO", help="A video file or a folder of frames.", show_default=False)
    ],
    point: Points = None,
    box: Boxes = None,
    mask: Masks = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")] = Path(
        "outputs/track"
    ),
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many frames.", show_default=False)
    ] = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    target: Target = "auto",
    as_json: Json = False,
) -> None:
    """Track objects through a video from prompts on its first frame.

    Writes masks/FRAME.png for every frame (palette PNGs of object ids, as in DAVIS) and overlay.mp4.

    Example: [bold]qsam2 track tiny-w4a8.safetensors clip.mp4 --box 290,230,460,560 --point 2:80,90[/bold]
    """
    from ..data.video import read_frames
    from ..segmentation import parse_prompts, track_file
    from ..workflow.models import load_runnable

    frames = list(read_frames(video, max_frames))
    height, width = frames[0].shape[:2]
    prompts = parse_prompts((width, height), point, box, mask)
    predictor = load_runnable(model, checkpoint, device, target)
    done = track_file(predictor, video, prompts, output, frames=frames)
    if as_json:
        print_json(
            {
                "video": str(video),
                "frames": done.frames,
                "masks": str(done.masks),
                "overlay": str(done.overlay),
                "objects": [{"id": number, "frames_visible": count} for number, count in done.visible.items()],
            }
        )
        return
    for number, count in done.visible.items():
        typer.echo(f"object {number}: visible on {count} of {done.frames} frames")
    typer.echo(f"wrote {done.masks} and {done.overlay}")
