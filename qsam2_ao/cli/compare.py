"""``qsam2 compare``: models beside each other on the user's pictures and clips."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .common import Device, Json, MaxPixels, console, print_json


class Asked(str, Enum):
    """What a grid is made of."""

    click = "click"
    box = "box"


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL[@TARGET]...",
            help="Two or more: 'embedded', packed .safetensors files, float checkpoints, folders of qsam2 export. The "
            "others are compared with the first. @packed, @int8, ... chooses how a packed file runs.",
            show_default=False,
        ),
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="A picture, or a folder of pictures. Repeatable.", show_default=False),
    ] = None,
    video: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="A video file, or a folder of frames. Repeatable.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts as JSON: a list as for qsam2 track, asked on each picture and clip; or one for each, "
            '{"truck.jpg": [...], "clip.mp4": [...]}.',
            show_default=False,
        ),
    ] = None,
    grid: Annotated[
        int, typer.Option(min=1, max=15, help="Without --prompts, ask at GRID x GRID places; half as many in a clip.")
    ] = 4,
    ask: Annotated[Asked, typer.Option(help="What to ask there: a click, or a box around the place.")] = Asked.click,
    max_frames: Annotated[
        int | None, typer.Option(min=2, help="Of each clip, only the first so many.", show_default=False)
    ] = None,
    worst: Annotated[int, typer.Option(min=1, help="Show so many masks where the models differ most.")] = 12,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each model in a process of its own.")] = True,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")] = Path(
        "outputs/compare"
    ),
    max_pixels: MaxPixels = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compare models: agreement of their masks with the first one's, speed, size, memory, and where they differ most.

    Without pictures and clips of yours, they are compared on scikit-image's photographs, where it is installed, and on
    procedural scenes of the models' input size. Writes comparison.json, which qsam2 report makes a page of, and
    contact_sheet.png.

    Example: [bold]qsam2 compare sam2.1_hiera_tiny.pt tiny-w4a8.safetensors --image photos --video clip.mp4[/bold]
    """
    from ..comparison import PromptPlan, compare_models, save_comparison, user_subjects
    from ..errors import DataError
    from ..files import check_output_folder

    check_output_folder(output)
    subjects = None
    if image or video:
        plan = PromptPlan(prompts, grid, ask.value)
        subjects = user_subjects(image or [], video or [], plan, max_frames=max_frames)
    elif prompts is not None:
        raise DataError("--prompts is about pictures and clips of yours: name them with --image and --video")
    found, sheet = compare_models(models, subjects, device=device, memory=memory, worst=worst)
    results, picture = save_comparison(found, sheet, output)
    if as_json:
        print_json(found.to_dict() | {"results": str(results), "contact_sheet": picture and str(picture)})
        return
    out = console()
    out.print(found.table())
    for case in found.cases[:3]:
        values = ", ".join(f"{label} {value:.0f} %" for label, value in case.iou.items())
        out.print(f"{case.title}: {values}", highlight=False, markup=False)
    typer.echo(f"wrote {results}" + (f" and {picture}" if picture else "; all masks are alike, so no contact sheet"))
