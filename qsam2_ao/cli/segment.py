"""``qsam2 segment``: an image and clicks or boxes -> a mask PNG and a picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Checkpoint, Device, Json, RunnableName, Target, load_runnable, print_json
from .prompts import Boxes, ObjectPrompt, Points, parse_prompts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


def segment(
    model: RunnableName,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.", show_default=False)],
    point: Points = None,
    box: Boxes = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")] = Path(
        "outputs/segment"
    ),
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    target: Target = "auto",
    as_json: Json = False,
) -> None:
    """Segment objects in an image.

    Writes IMAGE_mask.png (palette PNG of object ids, 0 is background) and IMAGE_overlay.png.

    Example: [bold]qsam2 segment tiny-w4a8.safetensors truck.jpg --point 500,375 --point 2:1425,600[/bold]
    """
    from PIL import Image

    from ..data.pictures import read_rgb
    from ..reporting.overlay import draw_masks, draw_prompts, save_picture
    from ..threads import one_thread_if_small
    from .masks import label_map, save_label_map

    picture = Image.fromarray(read_rgb(image))
    prompts = parse_prompts(picture.size, point, box)
    loaded = load_runnable(model, checkpoint, device, target)
    with one_thread_if_small(loaded):
        logits, scores = segment_image(loaded, picture, prompts)
    ids = label_map(logits)
    mask_path = save_label_map(ids, output / f"{image.stem}_mask.png")
    overlay = draw_prompts(
        draw_masks(picture, ids),
        [click for prompt in prompts.values() for click in prompt.points],
        [prompt.box for prompt in prompts.values() if prompt.box],
    )
    overlay_path = save_picture(overlay, output / f"{image.stem}_overlay.png")
    objects = [
        {"id": object_id, "score": scores[object_id], "pixels": int((ids == object_id).sum())} for object_id in prompts
    ]
    if as_json:
        print_json({"image": str(image), "mask": str(mask_path), "overlay": str(overlay_path), "objects": objects})
        return
    for found in objects:
        typer.echo(f"object {found['id']}: {found['pixels']} pixels, predicted IoU {found['score']:.2f}")
    typer.echo(f"wrote {mask_path} and {overlay_path}")


def segment_image(
    model: Any, picture: Image.Image, prompts: dict[int, ObjectPrompt]
) -> tuple[dict[int, NDArray[np.float32]], dict[int, float]]:
    """Run an image predictor on every object's clicks and box.

    Args:
        model: A model of the SAM2Base family, or an ``ExportedSAM2``.
        picture: RGB.
        prompts: Object id -> its prompts.

    Returns:
        Object id -> mask logits, float32 ``[height, width]``; object id -> the model's estimate of the IoU.
    """
    import numpy as np
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    from ..export import ExportedSAM2

    predictor = model if isinstance(model, ExportedSAM2) else SAM2ImagePredictor(model)
    predictor.set_image(picture)
    logits, scores = {}, {}
    for object_id, prompt in prompts.items():
        arrays = prompt.arrays()
        masks, ious, _ = predictor.predict(
            point_coords=arrays["points"],
            point_labels=arrays["labels"],
            box=arrays["box"],
            # One click may mean a part or the whole: let the model propose several and keep its favourite.
            multimask_output=len(prompt.points) == 1 and prompt.box is None,
            return_logits=True,
        )
        best = int(np.argmax(ious))
        logits[object_id], scores[object_id] = masks[best], float(ious[best])
    return logits, scores
