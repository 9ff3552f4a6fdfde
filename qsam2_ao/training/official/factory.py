"""The model of SAM2's trainer, quantized: what a config names in the place of ``training.model.sam2.SAM2Train``."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor
from training.model.sam2 import SAM2Train

from ...errors import CheckpointError
from ...models.config import model_config
from ...models.describe import constructor_parameters
from ...models.embedded import EMBEDDED_WEIGHTS, load_weights
from ...models.official import load_official_state, read_checkpoint
from ...prepare import prepare_qsam2
from ...ranks import from_first_rank
from ...stage import set_stage, stage_of
from .options import Options
from .random_state import random_state, set_random_state
from .record import TRAINER_CHECKPOINT, load_calibrated, record_of, save_calibrated

State = dict[str, Tensor]


def quantized_sam2(*, qsam2: Mapping[str, Any], **arguments: Any) -> SAM2Train:
    """A ``SAM2Train`` that is loaded, calibrated and fake-quantized, for Hydra to build.

    Under torch.distributed the first rank calibrates, and the others get what it has. Where the trainer will resume
    from a checkpoint nothing is calibrated; the trainer loads it. Random numbers go on as if the model were just built.

    Args:
        qsam2: The block of :class:`~qsam2_ao.training.official.options.Options`.
        **arguments: Those of ``SAM2Train``, its parts built already.

    Returns:
        The prepared model on the CPU.

    Raises:
        QConfigError: The block or its recipe cannot be used, or not with the checkpoint that is resumed.
        CheckpointError: The float checkpoint is not of this model, or a file of an earlier start cannot be used.
        CalibrationError: Unusable calibration images.

    Example:
        A config's ``trainer.model``: ``_target_: qsam2_ao.training.official.quantized_sam2``, SAM2Train's arguments,
        and ``qsam2: {preset: w4a8, checkpoint: sam2.1_hiera_tiny.pt, calibration: photos/}``.
    """
    options = Options.read(qsam2)
    model = SAM2Train(**arguments).eval()
    cpu, own = torch.device("cpu"), np.random.default_rng()
    before = random_state(own, cpu)
    try:
        resumed = _resumed(options)
        if resumed is not None:
            # As in trainer.py: SAM2's own logger is in the root's place.
            logging.root.info("%s will be resumed: nothing is calibrated", resumed)
            return _with_info(_uncalibrated(model, options), _record(resumed, options))
        return _calibrated(model, options)
    finally:
        set_random_state(before, own, cpu)


def uncalibrated_sam2(*, qsam2: Mapping[str, Any], **arguments: Any) -> SAM2Train:
    """The same model before anything is loaded or calibrated, to load a trainer's checkpoint into.

    Args:
        qsam2: As for :func:`quantized_sam2`; only the recipe matters.
        **arguments: As for :func:`quantized_sam2`.

    Raises:
        QConfigError: The block or its recipe cannot be used.
    """
    return _uncalibrated(SAM2Train(**arguments).eval(), Options.read(qsam2))


def _uncalibrated(model: SAM2Train, options: Options) -> SAM2Train:
    prepared = prepare_qsam2(model, options.qconfig, vrc=None, seed=options.seed, progress=False)
    assert isinstance(prepared, SAM2Train)
    return prepared


def _with_info(prepared: SAM2Train, info: Mapping[str, Any]) -> SAM2Train:
    set_stage(prepared, replace(stage_of(prepared), info=dict(info)))
    return prepared


def _resumed(options: Options) -> Path | None:
    """The checkpoint that the trainer will load, as it finds it."""
    own = Path(options.folder) / TRAINER_CHECKPOINT if options.folder is not None else None
    if own is not None and own.is_file():
        return own
    return None if options.resume_from is None else Path(options.resume_from)


def _record(checkpoint: Path, options: Options) -> dict[str, Any]:
    """The record in a checkpoint, if it is of the same recipe."""
    info = record_of(checkpoint)
    if info.get("recipe") != options.recipe:
        raise CheckpointError(
            f"{checkpoint} was trained with {info.get('recipe')}, the config has {options.recipe}: use the same, or "
            "choose another launcher.experiment_log_dir to start again"
        )
    return info


def _calibrated(model: SAM2Train, options: Options) -> SAM2Train:
    """The prepared model, equal on all ranks."""
    made: list[SAM2Train] = []

    def calibrate() -> tuple[State, Mapping[str, Any] | None]:
        made.append(_calibrate(model, options))
        return _state(made[0]), stage_of(made[0]).info

    state, info = from_first_rank(calibrate, "calibrate the model")
    if made:
        return made[0]
    prepared = _with_info(_uncalibrated(model, options), info or {})
    prepared.load_state_dict(state)
    return prepared


def _calibrate(model: SAM2Train, options: Options) -> SAM2Train:
    """The prepared model, calibrated now or by an earlier start."""
    settings = {**options.settings, "model": _digest(model)}
    found = None if options.folder is None else load_calibrated(options.folder, settings)
    if found is not None:
        logging.root.info("%s has the calibrated model of an earlier start", options.folder)
        prepared = _with_info(_uncalibrated(model, options), found[1])
        prepared.load_state_dict(found[0])
        return prepared
    _load_float(model, options.checkpoint)
    prepared = prepare_qsam2(
        model.to(options.device),
        options.qconfig,
        calibration_data=options.calibration,
        vrc=options.vrc,
        rounding=options.rounding,
        max_images=options.images,
        seed=options.seed,
    )
    assert isinstance(prepared, SAM2Train)
    prepared = prepared.to("cpu")
    float_weights = None if options.checkpoint is None else Path(options.checkpoint).name
    info = {**(stage_of(prepared).info or {}), "recipe": options.recipe, "rounding": options.rounding}
    _with_info(prepared, {**info, "float_weights": float_weights})
    if options.folder is not None:
        save_calibrated(options.folder, _state(prepared), stage_of(prepared).info or {}, settings)
    return prepared


def _digest(model: SAM2Train) -> str:
    """Of what a model computes, its input's size included, and not of how it is trained."""
    network = constructor_parameters(SAM2Base).keys()
    described = {key: value for key, value in model_config(model).items() if key in network}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _load_float(model: SAM2Train, checkpoint: str | None) -> None:
    if checkpoint == "embedded":
        load_weights(model, EMBEDDED_WEIGHTS)
    elif checkpoint is not None:
        load_official_state(model, read_checkpoint(checkpoint), checkpoint)


def _state(model: SAM2Train) -> State:
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}
