"""What the commands share: their arguments and options, and how results are printed."""

from __future__ import annotations

import json
import math
import os
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ..errors import QSAM2Error
from ..workflow import EMBEDDED

if TYPE_CHECKING:
    from rich.console import Console

    from ..segmentation import SegmentedImage, TrackedVideo

PRESET_NAMES = "w8a8, w4a8, w4a16, w3a8, w3a16, w2a8, w2a16, w2a4"
"""For the help, which takes no time to import torch."""


def _model(*files: str) -> typer.models.ArgumentInfo:
    """A command's model.

    Args:
        files: What it may be besides float models.
    """
    others = "".join(f"{file}, " for file in files)
    return typer.Argument(
        metavar="MODEL",
        help=f"'embedded', 'embedded-256', {others}a checkpoint or folder of transformers, or an official config "
        "(sam2.1-t, configs/sam2.1/sam2.1_hiera_t.yaml, ...) with --checkpoint.",
        show_default=False,
    )


_PACKED, _EXPORTED = "a packed .safetensors file", "a folder from qsam2 export"
FloatModelName: TypeAlias = Annotated[str, _model()]
ModelName: TypeAlias = Annotated[str, _model(_PACKED)]
RunnableName: TypeAlias = Annotated[str, _model(_PACKED, _EXPORTED)]
Checkpoint: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The config's checkpoint: .pt, .safetensors, of SAM2's trainer, or a folder of transformers.",
        show_default=False,
    ),
]
Device: TypeAlias = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, ...")]
Target: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="TARGET",
        help="How a packed file runs: auto (the fastest here), packed (exactly what was trained), int8, onednn, "
        "dequantized, int4.",
    ),
]
Shard: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Do only every N-th item, from the I-th, for arrays of jobs with a common --output. torchrun and srun "
        "deal by rank.",
        show_default=False,
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
Points: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--point",
        metavar="[FRAME@][ID:]X,Y[,LABEL]",
        help="A click in pixels; label 1 (the default) is inside the object, 0 outside. Repeatable. In a clip, FRAME "
        "says on which frame (0 is the first): 30@2:80,90,0.",
        show_default=False,
    ),
]
Boxes: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        metavar="[FRAME@][ID:]X0,Y0,X1,Y1",
        help="A box in pixels. Repeatable, with another ID (2:10,20,90,80) for another object.",
        show_default=False,
    ),
]
Masks: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--mask",
        metavar="[FRAME@][ID:]FILE",
        help="A mask PNG of the frame's size: object ids as in DAVIS, or black and white. Repeatable.",
        show_default=False,
    ),
]


def _limit_pixels(context: typer.Context, pixels: int | None) -> int | None:
    """Let the limit hold until the command ends."""
    if pixels is not None:
        from ..data.decoding import pixel_limit

        context.with_resource(pixel_limit(pixels))
    return pixels


MaxPixels: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="PIXELS",
        callback=_limit_pixels,
        help="Read pictures of up to so many pixels, not 268,435,456 (16,384 x 16,384).",
        show_default=False,
    ),
]
PromptFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help='Prompts as JSON: [{"frame": 30, "object": 2, "points": [[80, 90]], "labels": [0]}, ...], also with '
        '"box": \\[x0, y0, x1, y1], "mask": "FILE" or "remove": true.',
        show_default=False,
    ),
]


class SaveAs(str, Enum):
    """Forms in which masks are written; see ``segmentation.SavedAs``, which takes time to import."""

    masks = "masks"
    overlay = "overlay"
    rle = "rle"
    polygons = "polygons"


Save: TypeAlias = Annotated[
    list[SaveAs],
    typer.Option(
        help="What to write: masks (PNGs of object ids), overlay, rle or polygons (COCO's annotations as JSON). "
        "Repeatable.",
    ),
]


def console() -> Console:
    """Standard output for tables: of the terminal's width, or as wide as they are where a program or file reads it."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 1000)


def data_source(option: str, given: str | None, model: str) -> str:
    """What an option for data means: a folder, data sets with weights, or procedural data for the embedded model.

    Args:
        option: Its name, for errors.
        given: Its value; None where it was left out.
        model: The model's name.

    Returns:
        What exists, as it was given, or "embedded".

    Raises:
        QSAM2Error: It is missing for another model than the embedded one, there is no such folder, or a weight is no
            number.
    """
    from ..workflow.data import data_for

    if given not in (None, EMBEDDED) and not Path(str(given)).is_dir():
        from ..data.mixture import parse_sources

        for source in parse_sources(str(given)):
            if not Path(source.path).exists():
                raise QSAM2Error(f"{option} {source.path}: no such folder")
    return data_for(model, given, option)


def is_other_rank() -> bool:
    """Whether this is one of several processes of torchrun or srun and not the first, which speaks for all."""
    from ..ranks import place_from

    place = place_from(os.environ)
    return place is not None and place.rank > 0


def saved_files(done: SegmentedImage | TrackedVideo, *kinds: str) -> dict[str, str | None]:
    """The files that were written by their kind, and None for those that were not wanted."""
    return {kind: None if getattr(done, kind) is None else str(getattr(done, kind)) for kind in kinds}


def print_json(result: object) -> None:
    """Print a result for scripts: indented JSON on standard output, with null for NaN and infinity."""
    json.dump(_finite(result), sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
