"""The official SAM 2 and SAM 2.1 models by short names, with clear errors about their checkpoint files."""

from __future__ import annotations

import importlib
import logging
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..compat import adapt_predictors
from ..compat.random import OwnGenerator
from ..compat.rebind import rebound
from ..devices import usable_device
from ..errors import CheckpointError, QSAM2Error
from ..stage import ModelStage, set_stage
from .describe import class_path
from .sizes import OF_MEMORY, image_part_only, in_words, recognise
from .weights import check_settings, image_size_of, read_checkpoint
from .yaml_config import compose, one_line

logger = logging.getLogger(__name__)
__all__ = ["OFFICIAL", "build_official", "load_official_state", "read_checkpoint"]

#: Short name -> the name of SAM2's own config, as ``sam2.build_sam`` takes it.
OFFICIAL: dict[str, str] = {
    f"{version}-{size}": f"configs/{version}/{version}_hiera_{size}.yaml"
    for version in ("sam2", "sam2.1")
    for size in ("t", "s", "b+", "l")
}


@torch.inference_mode(False)
def build_official(
    name_or_config: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    model_class: type[nn.Module] | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Build a SAM2 model with ``sam2.build_sam`` and load a checkpoint, in whatever form people have it.

    Args:
        name_or_config: A key of :data:`OFFICIAL` ("sam2.1-t"), an official config name
            ("configs/sam2.1/sam2.1_hiera_t.yaml"), or the path of a YAML file laid out like those. ``None`` takes the
            one that belongs to the checkpoint: its size by shapes, its version by the tensors that only SAM 2.1 has.
        checkpoint: A file or folder as for ``read_checkpoint``: Meta's or the trainer's ``.pt``, a state dict,
            ``.safetensors``, a folder of transformers. ``None`` leaves the weights random.
        model_class: ``SAM2VideoPredictor`` (the default), ``SAM2Base``, ``SAM2Train`` or a subclass of one
            that can be imported.
        image_size: Side of the square input in pixels, instead of the config's; a multiple of 32.
        device: Where the model is put.

    Returns:
        The model in eval mode, in float32. Weights of transformers' ``Sam2Model`` have no memory: such a model
        segments images, and a warning says so.

    Raises:
        CheckpointError: The checkpoint is absent, truncated, not a checkpoint, or of another model, naming which.
        QSAM2Error: The name is neither an official one nor a file, or the file no config of a SAM2; the input size
            doesn't fit the model; or there is no such device.

    Example:
        >>> model = build_official("sam2.1-t", "sam2.1_hiera_tiny.pt")  # doctest: +SKIP
        >>> model = build_official(checkpoint="my-finetune/")  # doctest: +SKIP
    """
    from sam2.build_sam import build_sam2, build_sam2_video_predictor
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    where = usable_device(device)
    # Read first: a wrong file shows before minutes of building.
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    name = _name_of(state, checkpoint) if name_or_config is None else name_or_config
    config = _find_config(name)
    if state is not None:
        _check_size(name, state, str(checkpoint))
    if image_size is None and checkpoint is not None:
        image_size = image_size_of(checkpoint)
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
    adapt_predictors()
    build = rebound(build, compose=partial(compose, config))
    images_only = state is not None and image_part_only(state)
    with OwnGenerator(0) if images_only else nullcontext():
        try:
            model = build(name, device="cpu", hydra_overrides_extra=overrides)
        except QSAM2Error:
            raise
        except Exception as error:  # constructors fail in any way on arguments that don't fit together
            raise QSAM2Error(
                f"{config}: no SAM2 can be built from it ({one_line(error)}); start from one of sam2's own"
            ) from error
    if state is not None:
        if images_only:
            logger.warning(
                "%s has no weights of the memory (transformers' Sam2Model has none): the model segments images, and "
                "cannot track; a Sam2VideoModel has all",
                checkpoint,
            )
            set_stage(model, ModelStage(images_only=True))
            own = model.state_dict()
            state = {**{key: own[key] for key in own if key.startswith(OF_MEMORY)}, **state}
        load_official_state(model, state, str(checkpoint))
        check_settings(str(checkpoint), model)
    return model.to(where)


def _name_of(state: dict[str, Tensor] | None, checkpoint: str | os.PathLike[str] | None) -> str:
    if state is None:
        raise QSAM2Error(f"name a model or a checkpoint; the models are {', '.join(OFFICIAL)}")
    if (name := recognise(state)) is None:
        raise CheckpointError(
            f"{checkpoint} is of {in_words(state)}, and no config is known for that; name its YAML file (the official "
            f"sizes are {', '.join(OFFICIAL)})"
        )
    return name


def _check_size(name: str, state: dict[str, Tensor], source: str) -> None:
    """Refuse the weights of one official model for another, before it is built."""
    given = next((short for short, config in OFFICIAL.items() if name in (short, config)), None)
    found = recognise(state)
    if given is None or given == found or (image_part_only(state) and str(found)[-2:] == given[-2:]):
        return
    raise CheckpointError(
        f"{source} is not a checkpoint of this model: it holds {in_words(state)}, and {name} was named"
        + (f"; name {found}, or leave the name to the file" if found else "; name the YAML file that belongs to it")
    )


def _find_config(name: str) -> Path:
    """The config's file."""
    if name in OFFICIAL or name in OFFICIAL.values():
        return Path(importlib.import_module("sam2").__path__[0]) / OFFICIAL.get(name, name)
    path = Path(name)
    if path.suffix.lower() in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise QSAM2Error(
            f"unknown model {name!r}: no such file, and no official config of that name; those are "
            f"{', '.join(OFFICIAL)}, or their files such as {OFFICIAL['sam2.1-t']}"
        )
    raise QSAM2Error(
        f"unknown model {name!r}: give one of {', '.join(OFFICIAL)}, an official config name such as "
        f"{OFFICIAL['sam2.1-t']}, or the path of an existing YAML file"
    )


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
        elif not state[name].is_floating_point():
            problems.append(f"{name} holds {str(state[name].dtype).removeprefix('torch.')} and no weights in float")
    if problems:
        raise CheckpointError(
            f"{source} is not a checkpoint of this model: {'; '.join(problems[:4])}; "
            f"it holds {in_words(state)}: choose the config that belongs to it{_only_more(missing, unknown, problems)}"
        )
    model.load_state_dict(state)


def _only_more(missing: list[str], unknown: list[str], problems: list[str]) -> str:
    """What to do about a checkpoint that has all of the model's tensors and others besides."""
    if missing or not unknown or len(problems) > 1:
        return ""
    return ", or, if those are layers that you added, save it without them"
