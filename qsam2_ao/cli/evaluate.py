"""``qsam2 evaluate``: J&F and mIoU of a model on the embedded test split or on a DAVIS-style folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .common import EMBEDDED, Checkpoint, Device, Json, ModelName, Target, console, load_model, print_json

IMAGES_PER_VIDEO = 2


def evaluate(
    model: ModelName,
    data: Annotated[
        str, typer.Option(metavar="FOLDER", help="A DAVIS-style folder, or 'embedded' for the procedural test split.")
    ] = EMBEDDED,
    videos: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many videos (embedded: 64).", show_default=False)
    ] = None,
    frames: Annotated[int, typer.Option(min=2, help="Frames of each embedded video.")] = 16,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    target: Target = "auto",
    as_json: Json = False,
) -> None:
    """Measure J&F on videos, given each first frame's masks, and mIoU on images, given boxes.

    Example: [bold]qsam2 evaluate tiny-w4a8.safetensors --data DAVIS/ --json[/bold]
    """
    from ..data.davis import read_davis
    from ..data.procedural import generate_split
    from ..reporting.tables import ModelRow, comparison_table

    loaded = load_model(model, checkpoint, device, target)
    if data == EMBEDDED:
        sequences: Sequence[Any] = list(generate_split("test", videos or 64, num_frames=frames))
    else:
        sequences = read_davis(data)[:videos]
    scores = score(loaded, sequences)
    if as_json:
        print_json({"model": model, "data": data, "videos": len(sequences), **scores})
        return
    title = f"{len(sequences)} videos of {data}, in percent"
    console().print(comparison_table([ModelRow(model, None, None, **scores)], title))


def score(model: Any, sequences: Sequence[Any]) -> dict[str, float]:
    """J&F with first-frame masks, and mIoU with boxes on some frames of the same videos.

    Args:
        model: A model of the SAM2Base family.
        sequences: Videos with masks.

    Returns:
        "j", "f", "jf" and "miou" in percent.
    """
    from ..evaluation import evaluate_image, evaluate_video, image_samples

    video = evaluate_video(model, sequences, progress=True)
    samples = image_samples(sequences, per_sequence=IMAGES_PER_VIDEO)
    image = evaluate_image(model, samples, prompt="box", progress=True)
    return {"j": video.j, "f": video.f, "jf": video.jf, "miou": image.miou}
