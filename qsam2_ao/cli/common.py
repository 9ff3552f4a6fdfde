"""What the commands share: the arguments for models, devices and results, and reading a model by its name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ..errors import QSAM2Error

if TYPE_CHECKING:
    import torch
    from rich.console import Console

EMBEDDED = "embedded"
PRESET_NAMES = "w8a8, w4a8, w4a16, w3a8, w3a16, w2a8, w2a16, w2a4"
"""For the help, which takes no time to import torch."""

ModelName: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="'embedded', a packed .safetensors file, or an official config (sam2.1-t, "
        "configs/sam2.1/sam2.1_hiera_t.yaml, ...) with --checkpoint.",
        show_default=False,
    ),
]
RunnableName: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="'embedded', a packed .safetensors file, a folder from qsam2 export, or an official config (sam2.1-t, "
        "configs/sam2.1/sam2.1_hiera_t.yaml, ...) with --checkpoint.",
        show_default=False,
    ),
]
Checkpoint: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The official config's .pt checkpoint.", show_default=False),
]
Device: TypeAlias = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, ...")]
Target: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="TARGET",
        help="How a packed file runs: auto (the fastest here), packed (exactly what was trained), int8, int4.",
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]


def parse_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        QSAM2Error: There is no such device on this machine.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise QSAM2Error(f"--device {name} cannot be used here ({reason}); try --device cpu") from error
    if device.type == "meta":
        raise QSAM2Error("--device meta computes nothing; try --device cpu")
    return device


def load_model(name: str, checkpoint: Path | None = None, device: str = "cpu", target: str = "packed") -> Any:
    """Load a model for SAM2's predictors by what people write on the command line.

    Args:
        name: "embedded", the path of a packed file, an official name or config.
        checkpoint: The ``.pt`` file of an official config.
        device: Where to put it.
        target: How a packed file runs, as for ``load_qsam2``; float models have no other way.

    Returns:
        A ``SAM2VideoPredictor`` in eval mode.

    Raises:
        QSAM2Error: The name or file is not a model, or the checkpoint is missing or out of place.

    Example:
        >>> predictor = load_model("sam2.1-t", Path("sam2.1_hiera_tiny.pt"))  # doctest: +SKIP
    """
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    from ..checkpoint import load_qsam2
    from ..models.embedded import load_embedded
    from ..models.official import OFFICIAL, build_official

    where = parse_device(device)
    official = name in OFFICIAL or Path(name).suffix in (".yaml", ".yml")
    if checkpoint is not None and not official:
        raise QSAM2Error(
            f"--checkpoint belongs to an official config, but the model is {name!r}; use one of {', '.join(OFFICIAL)}"
        )
    if official:
        if checkpoint is None:
            raise QSAM2Error(f"{name} is a config without weights; name its .pt file with --checkpoint")
        model = build_official(name, checkpoint, device=where)
    elif name == EMBEDDED:
        model = load_embedded(SAM2VideoPredictor).to(where)
    elif Path(name).suffix in (".pt", ".pth"):
        raise QSAM2Error(
            f"{name} looks like a PyTorch checkpoint; give the official config that it belongs to as MODEL, "
            f"and this file as --checkpoint (configs: {', '.join(OFFICIAL)})"
        )
    elif Path(name).is_dir():
        raise QSAM2Error(f"{name} is a folder; of exported files, only qsam2 segment and qsam2 track can make use")
    elif Path(name).exists():
        model = load_qsam2(name, device=where, model_class=SAM2VideoPredictor, target=target)
    else:
        raise QSAM2Error(
            f"no model {name!r}: neither 'embedded', nor a file, nor one of {', '.join(OFFICIAL)}; check the spelling"
        )
    return without_hole_filling(model)


def load_runnable(name: str, checkpoint: Path | None = None, device: str = "cpu", target: str = "packed") -> Any:
    """As :func:`load_model`, or an ``ExportedSAM2`` if it is a folder that ``qsam2 export`` wrote.

    Raises:
        QSAM2Error: As :func:`load_model`; or exported files are to run elsewhere than on the CPU.
    """
    from ..export import ExportedSAM2

    if not Path(name).is_dir():
        return load_model(name, checkpoint, device, target)
    if checkpoint is not None or parse_device(device).type != "cpu":
        raise QSAM2Error(f"{name} is a folder of exported files: they run on the CPU and take no --checkpoint")
    return ExportedSAM2(name)


def without_hole_filling(model: Any) -> Any:
    """Switch off the filling of small holes where the sam2 package lacks its CUDA extension, and say so.

    It would warn once, at length, and leave the holes anyway.
    """
    if getattr(model, "fill_hole_area", 0) > 0:
        try:
            from sam2 import _C  # noqa: F401
        except ImportError:
            note("small holes in masks are left: the sam2 package has no CUDA extension here")
            model.fill_hole_area = 0
    return model


def console() -> Console:
    """Standard output for tables: of the terminal's width, or wide enough for long names where a program reads it."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def note(message: str) -> None:
    """Tell the user something that is not the result: on standard error."""
    typer.echo(message, err=True)


def print_json(result: Any) -> None:
    """Print a result for scripts: indented JSON on standard output, without NaN or infinity."""
    json.dump(result, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")
