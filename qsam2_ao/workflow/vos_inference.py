"""SAM2's own tools/vos_inference.py on a quantized model, as it is."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sam2 import build_sam
from sam2.sam2_video_predictor import SAM2VideoPredictor

from ..errors import QSAM2Error
from ..reporting.notes import note
from .models import load_model

#: Its options that name a model.
_MODEL_OPTIONS = ("--sam2_cfg", "--sam2_checkpoint")
#: What it asks the builder to change in a config, and what that is in a model.
_SETTINGS = ("non_overlap_masks", "fill_hole_area", "binarize_mask_from_pts_for_mem_enc")
_POSTPROCESSING: dict[str, Any] = {"fill_hole_area": 8, "binarize_mask_from_pts_for_mem_enc": True}


def vos_inference(
    model: str,
    script: str | os.PathLike[str],
    arguments: Sequence[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str | None = None,
    target: str = "auto",
) -> None:
    """Run the script with a model of this package in the place of the one that it builds.

    Args:
        model: As for ``load_model``: a packed file, "embedded", an official config.
        script: The script, from a clone of facebookresearch/sam2: ``tools/vos_inference.py``, or another that takes its
            model from ``sam2.build_sam.build_sam2_video_predictor``.
        arguments: The script's own, without those that name a model.
        checkpoint: As for ``load_model``.
        device: Where the model runs; by default on CUDA if there is any, else on the CPU.
        target: As for ``load_model``.

    Raises:
        QSAM2Error: There is no such script, it is told of another model, or it asks for what a packed model cannot do.

    Example:
        >>> vos_inference("tiny.safetensors", "sam2/tools/vos_inference.py", ["--help"])  # doctest: +SKIP
    """
    script = Path(script)
    if not script.is_file():
        raise QSAM2Error(
            f"{script}: no such file; it is in SAM2's repository (git clone https://github.com/facebookresearch/sam2), "
            "which its package lacks"
        )
    for argument in arguments:
        if argument.partition("=")[0] in _MODEL_OPTIONS:
            raise QSAM2Error(f"{argument.partition('=')[0]} is left out: the model is {model}")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    predictor = load_model(model, checkpoint, where, target)

    def build_sam2_video_predictor(
        config_file: str,
        ckpt_path: str | None = None,
        device: str = "cuda",
        mode: str = "eval",
        hydra_overrides_extra: Sequence[str] = (),
        apply_postprocessing: bool = True,
        vos_optimized: bool = False,
        **_: object,
    ) -> SAM2VideoPredictor:
        if vos_optimized:
            raise QSAM2Error("--use_vos_optimized_video_predictor compiles a float model: leave it out")
        if mode != "eval":
            raise QSAM2Error(f"the script builds its model in mode {mode!r}, and a quantized one has eval only")
        changes = {**dict.fromkeys(_POSTPROCESSING, 0), **(_POSTPROCESSING if apply_postprocessing else {})}
        changes.update(map(_setting, hydra_overrides_extra))
        for name, value in changes.items():
            setattr(predictor, name, type(getattr(predictor, name))(value))
        decoder: Any = predictor.sam_mask_decoder
        decoder.dynamic_multimask_via_stability = apply_postprocessing
        note(f"the script runs {model} on {where}")
        return predictor

    with _in_place_of(build_sam2_video_predictor, [str(script), *arguments]):
        runpy.run_path(str(script), run_name="__main__")


@contextmanager
def _in_place_of(builder: Any, arguments: list[str]) -> Iterator[None]:
    """Let the script find a builder and its arguments, for the block."""
    original, argv = build_sam.build_sam2_video_predictor, sys.argv
    build_sam.build_sam2_video_predictor, sys.argv = builder, arguments
    try:
        yield
    finally:
        build_sam.build_sam2_video_predictor, sys.argv = original, argv


def _setting(override: str) -> tuple[str, bool | int]:
    """One of Hydra's overrides as the script writes it, ``++model.non_overlap_masks=true``."""
    name, _, value = override.lstrip("+").removeprefix("model.").partition("=")
    if name not in _SETTINGS or not (value.isdigit() or value in ("true", "false")):
        raise QSAM2Error(f"the script asks for {override}, which cannot be changed in a finished model")
    return name, int(value) if value.isdigit() else value == "true"
