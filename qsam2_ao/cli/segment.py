"""``qsam2 segment``: an image and clicks, boxes or masks -> a mask PNG and a picture of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

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
    Target,
    print_json,
    saved_files,
)


def segment(
    model: RunnableName,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.", show_default=False)],
    point: Points = None,
    box: Boxes = None,
    mask: Masks = None,
    prompts: PromptFile = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")] = Path(
        "outputs/segment"
    ),
    save: Save = [SaveAs.masks, SaveAs.overlay],  # noqa: B006 - it is not changed, and typer shows it
    max_pixels: MaxPixels = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    target: Target = "auto",
    as_json: Json = False,
) -> None:
    """Segment objects in an image.

    Writes IMAGE_mask.png (palette PNG of object ids, 0 is background) and IMAGE_overlay.png; with --save, also or
    instead, IMAGE_rle.json and IMAGE_polygons.json.

    Example: [bold]qsam2 segment tiny-w4a8.safetensors truck.jpg --point 500,375 --point 2:1425,600[/bold]
    """
    from ..data.listing import VIDEO_SUFFIXES
    from ..data.pictures import read_rgb
    from ..errors import DataError
    from ..segmentation import SavedAs, parse_prompts, segment_file
    from ..segmentation.prompts import files_of_prompts
    from ..segmentation.saving import check_outputs
    from ..workflow.models import load_runnable

    forms: list[SavedAs] = [kind.value for kind in save]
    if image.is_dir() or image.suffix.lower() in VIDEO_SUFFIXES:
        raise DataError(f"{image} is a clip and no picture; qsam2 track follows objects through it")
    check_outputs(forms, output, image, files_of_prompts(mask, prompts))
    height, width = read_rgb(image).shape[:2]
    given = parse_prompts((width, height), point, box, mask, prompts)
    runnable = load_runnable(model, checkpoint, device, target)
    done = segment_file(runnable, image, given, output, save=forms)
    files = saved_files(done, "mask", "overlay", "rle", "polygons")
    if as_json:
        objects = [asdict(found) for found in done.objects]
        print_json({"image": str(image), **files, "objects": objects})
        return
    for found in done.objects:
        typer.echo(f"object {found.id}: {counted(found.pixels, 'pixel')}, predicted IoU {found.score:.2f}")
    typer.echo(f"wrote {' and '.join(filter(None, files.values()))}")
