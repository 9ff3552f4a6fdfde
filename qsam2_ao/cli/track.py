"""``qsam2 track``: a clip and prompts on any frame -> a mask PNG for each frame, and an overlay video."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    Boxes,
    Checkpoint,
    Device,
    Json,
    Masks,
    MaxPixels,
    Points,
    PromptFile,
    RunnableName,
    Save,
    SaveAs,
    Target,
    print_json,
    saved_files,
)


class Way(str, Enum):
    """Directions of tracking."""

    forward = "forward"
    backward = "backward"
    both = "both"


def track(
    model: RunnableName,
    video: Annotated[
        Path, typer.Argument(metavar="VIDEO", help="A video file or a folder of frames.", show_default=False)
    ],
    point: Points = None,
    box: Boxes = None,
    mask: Masks = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="FRAME@ID", help="Don't follow an object from that frame on. Repeatable."),
    ] = None,
    prompts: PromptFile = None,
    direction: Annotated[
        Way,
        typer.Option(
            help="forward in time; backward from the last prompt to the first frame; or both: forward, and each object "
            "backward from its first prompt."
        ),
    ] = Way.forward,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")] = Path(
        "outputs/track"
    ),
    save: Save = [SaveAs.masks, SaveAs.overlay],  # noqa: B006 - it is not changed, and typer shows it
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many frames.", show_default=False)
    ] = None,
    max_pixels: MaxPixels = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    target: Target = "auto",
    as_json: Json = False,
) -> None:
    """Track objects through a video from prompts on its frames.

    A prompt starts an object, or corrects its mask where it is tracked already: look at the masks, add prompts, and run
    again. Writes masks/FRAME.png for every frame (palette PNGs of object ids, as in DAVIS) and overlay.mp4; with
    --save, rle.json and polygons.json too, or instead.

    Example: [bold]qsam2 track tiny-w4a8.safetensors clip.mp4 --box 290,230,460,560 --point 30@1:300,250,0[/bold]
    """
    from ..data.frames import ClipFrames
    from ..segmentation import SavedAs, parse_schedule, track_file
    from ..segmentation.saving import check_outputs
    from ..segmentation.schedule import check_schedule
    from ..workflow.models import load_runnable

    forms: list[SavedAs] = [kind.value for kind in save]
    check_outputs(forms, output)
    frames = ClipFrames(video, max_frames)
    height, width = frames.first.shape[:2]
    schedule = parse_schedule((width, height), point, box, mask, remove, prompts, frames=len(frames))
    check_schedule(schedule, (width, height), len(frames), direction.value)
    predictor = load_runnable(model, checkpoint, device, target)
    done = track_file(
        predictor,
        video,
        schedule,
        output,
        frames=frames,
        direction=direction.value,
        save=forms,
    )
    files = saved_files(done, "masks", "overlay", "rle", "polygons")
    if as_json:
        print_json(
            {
                "video": str(video),
                "frames": done.frames,
                **files,
                "objects": [{"id": number, "frames_visible": count} for number, count in done.visible.items()],
            }
        )
        return
    for number, count in done.visible.items():
        typer.echo(f"object {number}: visible on {count} of {done.frames} frames")
    typer.echo(f"wrote {' and '.join(filter(None, files.values()))}")
