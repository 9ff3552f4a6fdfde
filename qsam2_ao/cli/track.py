"""``qsam2 track``: a clip and first-frame prompts -> a mask PNG for each frame, and an overlay video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError
from .common import Checkpoint, Device, Json, RunnableName, Target, load_runnable, print_json
from .prompts import Boxes, Masks, ObjectPrompt, Points, parse_prompts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    import numpy as np
    from tqdm import tqdm

    from ..data.pictures import list_pictures
    from ..data.video import frame_rate, read_frames, write_video
    from ..reporting.overlay import draw_masks
    from ..threads import one_thread_if_small
    from .masks import save_label_map

    frames = list(read_frames(video, max_frames))
    height, width = frames[0].shape[:2]
    prompts = parse_prompts((width, height), point, box, mask)
    predictor = load_runnable(model, checkpoint, device, target)
    names = [path.stem for path in list_pictures(video)] if video.is_dir() else [f"{i:05d}" for i in range(len(frames))]
    visible = dict.fromkeys(prompts, 0)

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for frame, ids in tqdm(track_frames(predictor, frames, prompts), "track", len(frames), unit="frame"):
            save_label_map(ids, output / "masks" / f"{names[frame]}.png")
            for object_id in visible:
                visible[object_id] += bool((ids == object_id).any())
            yield np.asarray(draw_masks(frames[frame], ids))

    overlay = output / "overlay.mp4"
    with one_thread_if_small(predictor):
        write_video(overlay, pictures(), frame_rate(video))
    objects = [{"id": object_id, "frames_visible": count} for object_id, count in visible.items()]
    if as_json:
        print_json(
            {
                "video": str(video),
                "frames": len(frames),
                "masks": str(output / "masks"),
                "overlay": str(overlay),
                "objects": objects,
            }
        )
        return
    for found in objects:
        typer.echo(f"object {found['id']}: visible on {found['frames_visible']} of {len(frames)} frames")
    typer.echo(f"wrote {output / 'masks'} and {overlay}")


def track_frames(
    predictor: Any, frames: Sequence[NDArray[np.uint8]], prompts: dict[int, ObjectPrompt]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Run a video predictor over a clip.

    Args:
        predictor: A ``SAM2VideoPredictor`` or an ``ExportedSAM2``.
        frames: uint8 ``[height, width, 3]`` each, RGB, all of one size.
        prompts: Object id -> its prompts on the first frame.

    Yields:
        Index of the frame and its ids, uint8 ``[height, width]``, in the order of time.

    Raises:
        DataError: An exported model is to track from a mask.
    """
    import torch

    from ..compat.quiet import propagate_quietly
    from ..evaluation.state import predictor_state
    from ..export import ExportedSAM2
    from .masks import label_map

    if isinstance(predictor, ExportedSAM2):
        if masked := [object_id for object_id, prompt in prompts.items() if prompt.mask is not None]:
            raise DataError(f"object {masked[0]} has a mask, and exported files track from clicks and boxes only")
        for frame, found in predictor.track(frames, {i: prompt.arrays() for i, prompt in prompts.items()}):
            yield frame, label_map(found)
        return
    state = predictor_state(predictor, frames)
    for object_id, prompt in prompts.items():
        if prompt.mask is not None:
            predictor.add_new_mask(state, 0, object_id, prompt.mask)
        else:
            predictor.add_new_points_or_box(state, 0, object_id, **prompt.arrays())
    for frame, object_ids, logits in propagate_quietly(predictor, state):
        masks = logits[:, 0].to(torch.float32).cpu().numpy()
        yield frame, label_map(dict(zip(object_ids, masks, strict=True)))
