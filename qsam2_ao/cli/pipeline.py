"""Float model -> packed file in steps that survive an interruption; ``quantize`` runs it once, ``demo`` twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ..checkpoint import save_qsam2
from ..convert import convert_qsam2
from ..data.procedural import generate_sequence
from ..errors import CheckpointError, QSAM2Error
from ..files import save_torch
from ..prepare import prepare_qsam2
from ..recipe import QConfigLike, preset_qconfig
from ..sensitivity import Assignment
from ..stage import set_stage, stage_of
from ..training.distillation import RECOMMENDED
from ..training.qat import train_qat
from .common import EMBEDDED, note
from .workspace import Workspace

Batches = Callable[[int], Iterator[Any]]


@dataclass(frozen=True)
class Recipe:
    """How to quantize.

    Attributes:
        preset: A preset's name; with an assignment a name for messages and files.
        images: Calibrate on at most so many images.
        steps: Steps of quantization-aware training; 0 is post-training quantization.
        lr: Peak learning rate.
        seed: Seed of everything random.
        first_last_bits: Bits of the first and last layers; None for the preset's own.
        assignment: Bits of the weights layer by layer, in place of the preset's.
        activation_bits: Bits of the layers' inputs, for an assignment; None keeps them in float.
    """

    preset: str
    images: int
    steps: int
    lr: float
    seed: int
    first_last_bits: int | None = None
    assignment: Assignment | None = None
    activation_bits: int | None = None

    @property
    def qconfig(self) -> QConfigLike:
        """What ``prepare_qsam2`` takes."""
        if self.assignment is not None:
            return self.assignment.qconfig(self.activation_bits)
        if self.first_last_bits is None:
            return self.preset
        return preset_qconfig(self.preset, first_last_bits=self.first_last_bits)


def quantize_file(
    model: Any,
    recipe: Recipe,
    output: Path,
    work: Workspace,
    *,
    calibration_data: Any,
    batches: Batches | None = None,
) -> Any:
    """Calibrate, train, convert and save, going on from what ``work`` has.

    Args:
        model: A float model; not changed.
        recipe: How.
        output: The packed file to write.
        work: Where finished steps are kept. Its settings must name everything that the result depends on.
        calibration_data: As ``prepare_qsam2`` takes it.
        batches: As ``train_qat`` takes them; None for procedural clips.

    Returns:
        The quantized model, as it was saved.

    Raises:
        QSAM2Error: A step failed; the message says which layer, file or setting.
        KeyboardInterrupt: Ctrl-C; finished steps and the training so far are kept.
    """
    note(f"{recipe.preset}: calibrating (VRC, GPTQ)")
    prepared = _prepare(model, recipe, work.folder / f"{recipe.preset}-prepared.pt", calibration_data)
    if recipe.steps:
        note(f"{recipe.preset}: training (LSC, distilled from the float model), {recipe.steps} steps")
        train_qat(
            prepared,
            steps=recipe.steps,
            lr=recipe.lr,
            seed=recipe.seed,
            batches=batches,
            distill_from=model,
            distill=RECOMMENDED,
            checkpoint=work.folder / f"{recipe.preset}-training.pt",
            description=f"{recipe.preset} QAT",
        )
    note(f"{recipe.preset}: packing into {output}")
    quantized = convert_qsam2(prepared.eval())
    save_qsam2(quantized, output)
    return quantized


def _prepare(model: Any, recipe: Recipe, path: Path, calibration_data: Any) -> Any:
    """The prepared model, calibrated now or by the run that was interrupted."""
    if path.exists():
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            prepared = prepare_qsam2(model, recipe.qconfig, vrc=None, seed=recipe.seed, progress=False)
            prepared.load_state_dict(stored["state"])
        except (RuntimeError, KeyError, EOFError, UnpicklingError) as error:
            raise CheckpointError(
                f"{path} cannot be continued from ({_first_line(error)}); delete it and run again"
            ) from error
        set_stage(prepared, replace(stage_of(prepared), info=stored["info"]))
        return prepared
    prepared = prepare_qsam2(
        model,
        recipe.qconfig,
        calibration_data=calibration_data,
        rounding="gptq",
        max_images=recipe.images,
        seed=recipe.seed,
    )
    stage = stage_of(prepared)
    info = dict(stage.info or {})
    if recipe.assignment is not None:
        info["qconfig"] = recipe.preset
    elif recipe.first_last_bits is not None:
        info["qconfig"] = f"{recipe.preset}, first and last layers {recipe.first_last_bits} bits"
    set_stage(prepared, replace(stage, info=info))
    save_torch({"state": prepared.state_dict(), "info": info}, path)
    return prepared


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def procedural_images(count: int, side: int) -> list[Any]:
    """First frames of procedural training videos, to calibrate on.

    Args:
        count: How many.
        side: Side of the model's input in pixels; larger inputs get enlarged pictures of 256 pixels.

    Returns:
        uint8 ``[side, side, 3]`` each.
    """
    size = (min(side, 256), min(side, 256))
    return [generate_sequence("train", i, size=size, num_frames=1).frames[0] for i in range(count)]


def calibration_source(name: str, count: int, side: int) -> Any:
    """What ``--calibration`` means: procedural images for "embedded", else the folder."""
    return procedural_images(count, side) if name == EMBEDDED else name


def data_source(option: str, given: str | None, model: str) -> str:
    """What an option for a folder of data means: the folder, or procedural data for the embedded model.

    Args:
        option: Its name, for errors.
        given: Its value; None where it was left out.
        model: The model's name.

    Returns:
        An existing folder, or "embedded".

    Raises:
        QSAM2Error: It is missing for another model than the embedded one, or there is no such folder.
    """
    if given is None and model != EMBEDDED:
        raise QSAM2Error(f"{option} is missing: name a folder of your data, or 'embedded' for procedural videos")
    if given not in (None, EMBEDDED) and not Path(str(given)).is_dir():
        raise QSAM2Error(f"{option} {given}: no such folder")
    return given or EMBEDDED
