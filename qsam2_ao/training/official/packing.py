"""A checkpoint of SAM2's trainer -> a packed file."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor

from ...checkpoint import save_qsam2
from ...convert import convert_qsam2
from ...errors import CheckpointError
from ...files import check_output_file
from ...models.config import as_class
from ...models.embedded import DECODER_POSTPROCESSING
from ...stage import set_stage, stage_of
from .compose import own_cause
from .options import Options
from .record import TRAINER_CHECKPOINT, is_calibrated, read_plain, record_of

_UNCALIBRATED = "qsam2_ao.training.official.uncalibrated_sam2"
_NO_FILES: dict[str, Any] = {"checkpoint": None, "calibration": None, "folder": None, "resume_from": None}


def pack_checkpoint(config: DictConfig, checkpoint: str | os.PathLike[str], output: str | os.PathLike[str]) -> SAM2Base:
    """Convert what SAM2's trainer saved, and write it into one packed file.

    Args:
        config: The training's config, from :func:`~qsam2_ao.training.official.compose.compose_training`.
        checkpoint: A checkpoint of that training; of SAM2's own ``Trainer`` with the calibrated model beside it.
        output: The packed ``.safetensors`` file to write.

    Returns:
        The packed model, a ``SAM2VideoPredictor`` that chooses masks as ``sam2.build_sam`` has predictors do.

    Raises:
        CheckpointError: The checkpoint is damaged, has no record of its quantization, or is not of this config.
        QSAM2Error: A layer cannot be packed, or the file cannot be written.

    Example:
        >>> pack_checkpoint(config, "sam2_logs/run/checkpoints/checkpoint.pt", "w4a8.safetensors")  # doctest: +SKIP
    """
    check_output_file(output, ".safetensors")
    content = read_plain(checkpoint)
    if is_calibrated(content):
        raise CheckpointError(
            f"{checkpoint} is the calibrated model from before the training; give {TRAINER_CHECKPOINT} beside it, or "
            "qsam2 quantize for a model that is not trained"
        )
    if not isinstance(content.get("model"), dict):
        raise CheckpointError(f'{checkpoint} has no state dict under "model"; it is no checkpoint of SAM2\'s trainer')
    info = record_of(checkpoint)
    model = _build(config)
    options = Options.read(OmegaConf.to_container(config.trainer.model.qsam2, resolve=True))
    if info.get("recipe") != options.recipe:
        raise CheckpointError(f"{checkpoint} was trained with {info.get('recipe')}, the config has {options.recipe}")
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint} does not fit the config: {' '.join(str(error).split())[:400]}") from error
    training = {"epochs": content.get("epoch"), "steps": (content.get("steps") or {}).get("train")}
    set_stage(model, replace(stage_of(model), info={**info, "training": training}))
    # As sam2.build_sam has the float models predict.
    for name, value in DECODER_POSTPROCESSING.items():
        setattr(model.sam_mask_decoder, name, value)
    packed = convert_qsam2(as_class(model, SAM2VideoPredictor, binarize_mask_from_pts_for_mem_enc=True))
    save_qsam2(packed, output)
    return packed


def _build(config: DictConfig) -> SAM2Base:
    """The config's model, prepared, with neither weights nor ranges."""
    node = config.trainer.model.copy()
    node._set_parent(config.trainer)  # for what it interpolates
    OmegaConf.set_struct(node, False)
    node["_target_"] = _UNCALIBRATED
    node.qsam2.update(_NO_FILES)
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise own_cause(error) or error from error
