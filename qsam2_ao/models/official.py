"""The official SAM 2 and SAM 2.1 models by short names, with clear errors about their checkpoint files."""

from __future__ import annotations

import importlib
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ..compat import adapt_image_predictor
from ..compat.rebind import rebound
from ..errors import CheckpointError, QSAM2Error
from .describe import class_path

#: Short name -> the name of SAM2's own config, as ``sam2.build_sam`` takes it.
OFFICIAL: dict[str, str] = {
    f"{version}-{size}": f"configs/{version}/{version}_hiera_{size}.yaml"
    for version in ("sam2", "sam2.1")
    for size in ("t", "s", "b+", "l")
}


def build_official(
    name_or_config: str,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    model_class: type[nn.Module] | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Build a SAM2 model with ``sam2.build_sam`` and load a checkpoint in the official format.

    Args:
        name_or_config: A key of :data:`OFFICIAL` ("sam2.1-t"), an official config name
            ("configs/sam2.1/sam2.1_hiera_t.yaml"), or the path of a YAML file laid out like those.
        checkpoint: A ``.pt`` file with the state dict under "model". ``None`` leaves the weights random.
        model_class: ``SAM2VideoPredictor`` (the default), ``SAM2Base``, ``SAM2Train`` or a subclass of one
            that can be imported.
        image_size: Side of the square input in pixels, instead of the config's; a multiple of 32.
        device: Where the model is put.

    Returns:
        The model in eval mode, in float32.

    Raises:
        CheckpointError: The checkpoint is absent, truncated, not a checkpoint, or of another model.
        QSAM2Error: The name is neither an official one nor a file, or the input size doesn't fit the model.

    Example:
        >>> model = build_official("sam2.1-t", "sam2.1_hiera_tiny.pt")  # doctest: +SKIP
    """
    from sam2.build_sam import build_sam2, build_sam2_video_predictor
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    # Read first: a wrong file shows before minutes of building.
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    config = _find_config(name_or_config)
    overrides = []
    if image_size is not None:
        if image_size <= 0 or image_size % 32:
            raise QSAM2Error(f"image_size must be a positive multiple of 32, got {image_size}")
        overrides.append(f"++model.image_size={image_size}")
    cls = SAM2VideoPredictor if model_class is None else model_class
    if cls is not SAM2VideoPredictor:
        overrides.append(f"++model._target_={class_path(cls)}")
    build = build_sam2_video_predictor if issubclass(cls, SAM2VideoPredictor) else build_sam2
    # Hydra has one search path for the whole process, which may be another program's or another thread's.
    adapt_image_predictor()
    build = rebound(build, compose=partial(_compose, config))
    model = build(name_or_config, device="cpu", hydra_overrides_extra=overrides)
    if state is not None:
        load_official_state(model, state, str(checkpoint))
    return model.to(device)


def _compose(path: Path, *, config_name: str, overrides: list[str]) -> Any:
    """What ``hydra.compose`` makes of a config that is one file, with its ``++key=value`` overrides."""
    config = OmegaConf.load(path)
    if "defaults" in config:
        raise QSAM2Error(f"{path} has a list of defaults, which Hydra composes; write its config out in one file")
    return OmegaConf.merge(config, OmegaConf.from_dotlist([override.removeprefix("++") for override in overrides]))


def _find_config(name: str) -> Path:
    """The config's file."""
    if name in OFFICIAL or name in OFFICIAL.values():
        return Path(importlib.import_module("sam2").__path__[0]) / OFFICIAL.get(name, name)
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    raise QSAM2Error(
        f"unknown model {name!r}: give one of {', '.join(OFFICIAL)}, an official config name such as "
        f"{OFFICIAL['sam2.1-t']}, or the path of an existing YAML file"
    )


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint in the official format, without running any code from the file.

    Args:
        path: A file written by ``torch.save({"model": state_dict})``.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        CheckpointError: The file is absent, truncated, or holds something else.

    Example:
        >>> state = read_checkpoint("tiny.pt")
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; download the checkpoint or correct the path")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} is not a complete PyTorch checkpoint of plain tensors ({reason}); download it again"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        found = f"keys {list(content)[:5]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise CheckpointError(
            f'{path} has no state dict under "model" (found {found}); it is not a checkpoint in SAM2\'s format'
        )
    return content["model"]


def load_official_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict strictly.

    Args:
        model: The model.
        state: Tensors by name.
        source: What to call the state's origin in errors, for example its path.

    Raises:
        CheckpointError: Tensors are missing, unknown or of another shape; the first few are named.

    Example:
        >>> load_official_state(model, read_checkpoint("tiny.pt"), "tiny.pt")
    """
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    problems = [
        f"{len(names)} {what}, first {', '.join(names[:3])}"
        for what, names in (("missing", missing), ("unknown", unknown))
        if names
    ]
    for name in sorted(expected.keys() & state.keys()):
        shape = tuple(getattr(state[name], "shape", ()))
        if shape != tuple(expected[name].shape):
            problems.append(f"{name} has shape {shape} instead of {tuple(expected[name].shape)}")
    if problems:
        raise CheckpointError(
            f"{source} is not a checkpoint of this model: {'; '.join(problems[:4])}; "
            "choose the config that belongs to it"
        )
    model.load_state_dict(state)
