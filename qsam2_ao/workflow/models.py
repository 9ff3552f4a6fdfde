"""Models by name: the embedded one, packed files, official configs with a checkpoint, exported folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base

from ..checkpoint import load_qsam2, save_qsam2
from ..deploy.targets import get_target
from ..devices import usable_device
from ..errors import QSAM2Error
from ..models.embedded import EMBEDDED_MODELS, load_embedded
from ..models.official import OFFICIAL, build_official
from ..models.weights import PICKLED, holds_float_weights
from ..predictors import without_hole_filling
from ..stage import stage_of

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    from ..export import ExportedSAM2


def parse_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        QSAM2Error: There is no such device on this machine.

    Example:
        >>> parse_device("cpu")
        device(type='cpu')
    """
    try:
        return usable_device(name)
    except QSAM2Error as error:
        raise QSAM2Error(f"--device {name}: {error}") from error


def is_config(name: str) -> bool:
    """Whether a model's name is that of an official config or a YAML file, which have no weights."""
    return name in OFFICIAL or Path(name).suffix.lower() in (".yaml", ".yml")


def load_model(
    name: str,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    target: str = "packed",
) -> SAM2VideoPredictor:
    """Load a model for SAM2's predictors by what people write on the command line.

    Args:
        name: "embedded" or "embedded-256", the path of a packed file, an official name or config, or a checkpoint or
            folder of transformers by itself, which tells the config.
        checkpoint: The checkpoint of a config, as for ``build_official``.
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

    get_target(target)
    where = parse_device(device)
    official = is_config(name)
    if checkpoint is not None and not official:
        raise QSAM2Error(
            f"--checkpoint belongs to an official config, but the model is {name!r}; use one of {', '.join(OFFICIAL)}, "
            "or give the checkpoint alone as the model"
        )
    if official:
        if checkpoint is None:
            raise QSAM2Error(
                f"{name} is a config without weights; name its checkpoint with --checkpoint, or give "
                "that file as the model, which tells the config"
            )
        model = build_official(name, checkpoint, device=where)
    elif name in EMBEDDED_MODELS:
        model = load_embedded(SAM2VideoPredictor, name=name).to(where)
    elif holds_float_weights(name) or Path(name).suffix.lower() in PICKLED:
        model = build_official(None, name, device=where)
    elif Path(name).is_dir():
        raise QSAM2Error(
            f"{name} is a folder; exported files are for qsam2 segment, track, compare, web and benchmark video"
        )
    elif Path(name).exists():
        model = load_qsam2(name, device=where, model_class=SAM2VideoPredictor, target=target)
    else:
        names = ", ".join((*EMBEDDED_MODELS, *OFFICIAL))
        raise QSAM2Error(f"no model {name!r}: neither a file nor one of {names}; check the spelling")
    assert isinstance(model, SAM2VideoPredictor)
    if target in ("int8", "onednn", "dequantized", "int4") and not stage_of(model).layers:
        raise QSAM2Error(f"--target {target} is for packed files, and {name} is a float model; quantize it first")
    return without_hole_filling(model)


def load_runnable(
    name: str,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    target: str = "packed",
) -> SAM2VideoPredictor | ExportedSAM2:
    """As :func:`load_model`, or an ``ExportedSAM2`` if it is a folder that ``qsam2 export`` wrote.

    Raises:
        QSAM2Error: As :func:`load_model`; or exported files are to run elsewhere than on the CPU, or on another target.
    """
    from ..export import ExportedSAM2

    if not Path(name).is_dir() or holds_float_weights(name):
        return load_model(name, checkpoint, device, target)
    get_target(target)
    if checkpoint is not None or parse_device(device).type != "cpu":
        raise QSAM2Error(f"{name} is a folder of exported files: they run on the CPU and take no --checkpoint")
    if target not in ("auto", "packed"):  # what commands give where nobody asked for another
        raise QSAM2Error(f"--target {target} is for packed files, and {name} was exported for what it runs on")
    return ExportedSAM2(name)


def save_embedded_w4a8(path: str | os.PathLike[str]) -> None:
    """Write the embedded model in W4A8, calibrated on nothing that matters: a file to load and to time.

    Args:
        path: The packed file.

    Raises:
        QSAM2Error: The file cannot be written.
    """
    from ..convert import convert_qsam2  # which loading a model has no use for

    model = load_embedded()
    assert isinstance(model, SAM2Base)
    save_qsam2(convert_qsam2(model, "w4a8", [np.zeros((96, 96, 3), np.uint8)], vrc=None, progress=False), path)
