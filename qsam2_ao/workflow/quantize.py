"""Float model -> packed file in steps that survive an interruption."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam2.modeling.sam2_base import SAM2Base

from ..calibration import CalibrationData
from ..checkpoint import save_qsam2
from ..convert import convert_qsam2
from ..data.davis import read_davis
from ..errors import CheckpointError, QSAM2Error
from ..files import check_output_file, load_torch, save_torch
from ..models.config import model_config
from ..prepare import prepare_qsam2
from ..recipe import QConfigLike, preset_qconfig
from ..reporting.notes import note
from ..sensitivity import Assignment
from ..stage import set_stage, stage_of
from ..workspace import Workspace, fingerprint
from . import EMBEDDED
from .data import calibration_source
from .models import load_model

if TYPE_CHECKING:
    from training.utils.data_utils import BatchedVideoDatapoint

Batches = Callable[[int], "Iterator[BatchedVideoDatapoint]"]

HELD_OUT_BATCHES = 8
#: Even, where the seeds that procedural clips are trained on are odd.
HELD_OUT_SEED = 2**20
#: How often a training is judged by the held-out batches.
JUDGEMENTS = 5


@dataclass(frozen=True)
class TrainingData:
    """What a training learns from, and what chooses between its weights.

    Attributes:
        batches: As ``train_qat`` takes them.
        held_out: Batches that are not trained on.
    """

    batches: Batches
    held_out: list[BatchedVideoDatapoint]


@dataclass(frozen=True)
class QuantizationJob:
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
    images: int = 50
    steps: int = 0
    lr: float = 1e-4
    seed: int = 0
    first_last_bits: int | None = None
    assignment: Assignment | None = None
    activation_bits: int | None = None

    @classmethod
    def mixed(
        cls,
        assignment: Assignment,
        activation_bits: int | None = 8,
        *,
        images: int = 50,
        steps: int = 0,
        lr: float = 1e-4,
        seed: int = 0,
    ) -> QuantizationJob:
        """A job with bits layer by layer, named after them.

        Args:
            assignment: Bits of the weights.
            activation_bits: Bits of the layers' inputs, 4 to 8; None keeps them in float.
            images: As above.
            steps: As above.
            lr: As above.
            seed: As above.

        Example:
            >>> QuantizationJob.mixed(Assignment.load("bits.json")).preset
            'w2-3-4-8a8'
        """
        name = f"w{'-'.join(map(str, assignment.counts()))}a{activation_bits or 16}"
        return cls(name, images, steps, lr, seed, assignment=assignment, activation_bits=activation_bits)

    @property
    def qconfig(self) -> QConfigLike:
        """What ``prepare_qsam2`` takes."""
        if self.assignment is not None:
            return self.assignment.qconfig(self.activation_bits)
        if self.first_last_bits is None:
            return self.preset
        return preset_qconfig(self.preset, first_last_bits=self.first_last_bits)


def quantize_to_file(
    model: str,
    job: QuantizationJob,
    output: str | os.PathLike[str],
    *,
    calibration: str = EMBEDDED,
    train_data: str = EMBEDDED,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> SAM2Base:
    """Quantize a float model that has a name into a packed file. Run again, it goes on where it stopped.

    Finished steps are kept in ``OUTPUT.work`` beside the file until it is written. A run with the same settings and
    another name in the same folder goes on from there too.

    Args:
        model: "embedded", or an official name or config with its checkpoint.
        job: How.
        output: The packed ``.safetensors`` file to write.
        calibration: A folder of images, or "embedded" for procedural ones.
        train_data: A DAVIS-style folder, or "embedded" for procedural clips; for a job with training steps.
        checkpoint: The ``.pt`` file of an official config.
        device: Where to calibrate and train.

    Returns:
        The quantized model, as it was saved.

    Raises:
        QSAM2Error: The model is quantized already, or a step failed; the message says which layer, file or setting.
            What can be known before the first step (data, recipe, the place and the room for the file) is.
        KeyboardInterrupt: Ctrl-C; finished steps and the training so far are kept.

    Example:
        >>> quantize_to_file("embedded", QuantizationJob("w4a8", images=10), "w4a8.safetensors")  # doctest: +SKIP
    """
    if job.steps:
        importlib.import_module("qsam2_ao.training")  # says before the calibration what is missing
    output = Path(output)
    check_output_file(output, ".safetensors")
    loaded = load_model(model, checkpoint, device)
    if stage_of(loaded).layers:
        raise QSAM2Error(f"{model} is quantized already; quantize its float model instead")
    if job.assignment is not None:
        job.assignment.check_model(loaded)
    model_config(loaded)  # without it the result could not be saved
    check_output_file(output, ".safetensors", _room(loaded, job))
    training = None
    if job.steps and train_data != EMBEDDED:
        from ..training.clips import clip_batches, hold_out

        trained, held = hold_out(read_davis(train_data))
        size = loaded.image_size
        training = TrainingData(
            clip_batches(trained, size, job.steps, seed=job.seed, device=device),
            # Drawn now: what is wrong with all of the data shows before the calibration.
            list(clip_batches(held, size, HELD_OUT_BATCHES, seed=HELD_OUT_SEED, device=device)(0)),
        )
    work = Workspace(
        output.parent / f"{output.name}.work",
        {
            **asdict(job),
            "model": fingerprint(model),
            "checkpoint": fingerprint(checkpoint),
            "calibration": fingerprint(calibration),
            "train_data": fingerprint(train_data) if job.steps else None,
            "versions": {name: importlib.metadata.version(name) for name in ("qsam2_ao", "torch")},
        },
        sorted(output.parent.glob("*.work")),
    )
    data = calibration_source(calibration, job.images, loaded.image_size)
    quantized = quantize_model(loaded, job, output, work, calibration_data=data, training=training)
    work.discard()
    return quantized


def quantize_model(
    model: SAM2Base,
    job: QuantizationJob,
    output: Path,
    work: Workspace,
    *,
    calibration_data: CalibrationData,
    training: TrainingData | None = None,
) -> SAM2Base:
    """Calibrate, train, convert and save, going on from what ``work`` has.

    Training never makes it worse: the averaged weights of a few steps, and the untrained start, are judged by batches
    that are not trained on, and the best go into the file.

    Args:
        model: A float model; not changed.
        job: How.
        output: The packed file to write.
        work: Where finished steps are kept. Its settings must name everything that the result depends on.
        calibration_data: As ``prepare_qsam2`` takes it.
        training: What to train on and to judge by; None for procedural clips.

    Returns:
        The quantized model, as it was saved.

    Raises:
        QSAM2Error: A step failed; the message says which layer, file or setting.
        KeyboardInterrupt: Ctrl-C; finished steps and the training so far are kept.
    """
    note(f"{job.preset}: calibrating (VRC, GPTQ)")
    prepared = _prepare(model, job, work.folder / f"{job.preset}-prepared.pt", calibration_data)
    if job.steps:
        from ..training.distillation import RECOMMENDED
        from ..training.qat import train_qat

        note(f"{job.preset}: training (LSC, distilled from the float model), {job.steps} steps")
        training = training or _procedural(model, job)
        result = train_qat(
            prepared,
            steps=job.steps,
            lr=job.lr,
            seed=job.seed,
            batches=training.batches,
            held_out=training.held_out,
            judge_every=math.ceil(job.steps / JUDGEMENTS),
            distill_from=model,
            distill=RECOMMENDED,
            checkpoint=work.folder / f"{job.preset}-training.pt",
            description=f"{job.preset} QAT",
        )
        note(f"{job.preset}: {result.selected}")
    note(f"{job.preset}: packing into {output}")
    quantized = convert_qsam2(prepared.eval())
    save_qsam2(quantized, output)
    return quantized


def _procedural(model: SAM2Base, job: QuantizationJob) -> TrainingData:
    from ..training.batches import ProceduralBatches
    from ..training.qat import QAT_STAGES

    device, size = next(model.parameters()).device, (model.image_size, model.image_size)
    trained = ProceduralBatches(QAT_STAGES, size=size, seed=2 * job.seed + 1)
    held = ProceduralBatches(QAT_STAGES, size=size, seed=HELD_OUT_SEED)
    return TrainingData(trained.stream(job.steps, device=device), list(held.stream(HELD_OUT_BATCHES, device=device)(0)))


def _prepare(model: SAM2Base, job: QuantizationJob, path: Path, calibration_data: CalibrationData) -> SAM2Base:
    """The prepared model, calibrated now or by the run that was interrupted."""
    if path.exists():
        problem, remedy = "cannot be continued from", "; delete it and run again"
        stored = load_torch(path, problem, remedy)
        prepared = prepare_qsam2(model, job.qconfig, vrc=None, seed=job.seed, progress=False)
        try:
            info = dict(stored["info"])
            prepared.load_state_dict(stored["state"])
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} {problem} ({_first_line(error)}){remedy}") from error
        set_stage(prepared, replace(stage_of(prepared), info=info))
        return prepared
    prepared = prepare_qsam2(
        model,
        job.qconfig,
        calibration_data=calibration_data,
        rounding="gptq",
        max_images=job.images,
        seed=job.seed,
    )
    stage = stage_of(prepared)
    info = dict(stage.info or {})
    if job.assignment is not None:
        info["qconfig"] = job.preset
    elif job.first_last_bits is not None:
        info["qconfig"] = f"{job.preset}, first and last layers {job.first_last_bits} bits"
    set_stage(prepared, replace(stage, info=info))
    save_torch({"state": prepared.state_dict(), "info": info}, path)
    return prepared


def _room(model: SAM2Base, job: QuantizationJob) -> int:
    """Bytes that the prepared model, the state of its training, and the packed file take together, at most."""
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    return size * (1 + 4 * bool(job.steps)) + size // 4


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
