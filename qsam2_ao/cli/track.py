"""``qsam2 track``: a clip and prompts on any frame -> a mask PNG for each frame, and an overlay video."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import QConfigError
from ..spelling import counted
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
    Shard,
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
        Path,
        typer.Argument(
            metavar="VIDEO",
            help="A video file, a folder of frames, or a folder of several of these.",
            show_default=False,
        ),
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
    shard: Shard = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    target: Target = "auto",
    as_json: Json = False,
) -> None:
    """Track objects through a video from prompts on its frames.

    A prompt starts an object, or corrects its mask where it is tracked already: look at the masks, add prompts, and run
    again. Writes masks/FRAME.png for every frame (palette PNGs of object ids, as in DAVIS) and overlay.mp4; with
    --save, rle.json and polygons.json too, or instead.

    Of a folder of videos, --prompts FOLDER has those of each: VIDEO.json, or VIDEO/FRAME.png of object ids, of which
    each object's first mask counts. Run again, it goes on after the last finished video; started by torchrun or srun,
    or with --shard, each process takes its share.

    Example: [bold]qsam2 track tiny-w4a8.safetensors clip.mp4 --box 290,230,460,560 --point 30@1:300,250,0[/bold]
    """
    from ..data.frames import ClipFrames
    from ..segmentation import SavedAs, parse_schedule, track_file
    from ..segmentation.prompts import files_of_prompts
    from ..segmentation.saving import check_outputs
    from ..segmentation.schedule import check_schedule
    from ..workflow.models import load_runnable
    from ..workflow.shares import share_of
    from ..workflow.track_many import is_folder_of_videos, track_videos

    forms: list[SavedAs] = [kind.value for kind in save]
    share = share_of(shard)
    if is_folder_of_videos(video):
        if point or box or mask or remove or prompts is None:
            raise QConfigError(
                f"{video} holds several videos: give their prompts in a folder, --prompts FOLDER with VIDEO.json or "
                "VIDEO/*.png for each, and nothing else"
            )
        results = track_videos(
            model,
            video,
            prompts,
            output,
            direction=direction.value,
            save=forms,
            max_frames=max_frames,
            checkpoint=checkpoint,
            device=device,
            target=target,
            share=share,
        )
        if results is not None:
            _show_many(results, as_json)
        return
    if share.count > 1:
        raise QConfigError(f"processes can share a folder of several videos, and {video} is one: start one process")
    check_outputs(forms, output, read=files_of_prompts(mask, prompts))
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
        typer.echo(f"object {number}: visible on {count} of {counted(done.frames, 'frame')}")
    typer.echo(f"wrote {' and '.join(filter(None, files.values()))}")


def _show_many(results: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"videos": [{key: value for key, value in r.items() if key != "settings"} for r in results]})
        return
    for result in results:
        objects, frames = counted(len(result["objects"]), "object"), counted(result["frames"], "frame")
        typer.echo(f"{result['video']}: {objects} on {frames}")
