"""``qsam2 benchmark video``: memory and latency over a long video."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..files import check_output_folder
from .common import Checkpoint, Json, RunnableName, Save, SaveAs, Target, print_json


def video(
    model: RunnableName,
    clip: Annotated[
        Path | None,
        typer.Option("--video", metavar="VIDEO", help="A video of yours, not a drawn one.", show_default=False),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Length of the drawn video, at 30 frames a second.")] = 10,
    width: Annotated[int, typer.Option(min=16, help="Of the drawn video, in pixels.")] = 1920,
    height: Annotated[int, typer.Option(min=16, help="Of the drawn video, in pixels.")] = 1080,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")] = Path(
        "outputs/long-video"
    ),
    save: Save = [SaveAs.masks],  # noqa: B006 - it is not changed, and typer shows it
    checkpoint: Checkpoint = None,
    target: Target = "auto",
    as_json: Json = False,
) -> None:
    """Track one object through a long video, and tell the process's memory over time and each frame's latency.

    Writes long_video.json, the drawn video, and what --save names. The memory must not grow with the video.

    Example: [bold]qsam2 benchmark video tiny-w4a8.safetensors --minutes 10[/bold]
    """
    from ..benchmark.long_video import FPS, draw_clip, measure_long_video
    from ..segmentation import SavedAs
    from ..segmentation.saving import check_outputs
    from ..workflow.models import load_runnable

    forms: list[SavedAs] = [kind.value for kind in save]
    check_output_folder(output, files=["long_video.json", "clip.mp4"])
    check_outputs(forms, output)
    if clip is None:
        load_runnable(model, checkpoint, "cpu", target)  # a wrong name is told before minutes of drawing
        clip = output / "clip.mp4"
        draw_clip(clip, round(minutes * 60 * FPS), (width, height), progress=True)
    found = measure_long_video(model, clip, output, checkpoint=checkpoint, target=target, save=forms)
    if as_json:
        print_json(asdict(found))
        return
    typer.echo(f"{found.frames} frames of {found.width} x {found.height} in {found.seconds:.0f} s")
    typer.echo("memory in MB: " + ", ".join(f"{mb:.0f} at {frame}" for frame, mb in _some(found.memory_mb)))
    typer.echo(f"with the model loaded {found.loaded_mb:.0f} MB, at most {found.peak_mb:.0f} MB")
    typer.echo("latency of a frame in ms: " + ", ".join(f"{name} {ms:.0f}" for name, ms in found.latency_ms.items()))


def _some(memory: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """About ten of them, with the first and the last."""
    return [*memory[: -1 : max(1, len(memory) // 10)], memory[-1]]
