"""Float model -> packed file in steps that survive an interruption."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2.modeling.sam2_base import SAM2Base

from ..calibration import CalibrationData
from ..checkpoint import save_qsam2
from ..convert import convert_qsam2
from ..errors import CheckpointError, QSAM2Error
from ..files import check_output_file, load_torch, save_torch
from ..models.config import model_config
from ..prepare import prepare_qsam2
from ..ranks import from_first_rank, joined, place_from, rank
from ..recipe import QConfigLike, preset_qconfig
from ..reporting.notes import note
from ..sensitivity import Assignment
from ..spelling import counted
from ..stage import set_stage, stage_of
from ..workspace import Workspace, fingerprint, versions
from . import EMBEDDED
from .data import calibration_source, data_for, sources_fingerprint
from .models import load_model

if TYPE_CHECKING:
    from ..training.settings import TrainingSettings
    from .training import TrainingData


@dataclass(frozen=True)
class QuantizationJob:
    """How to quantize.

    Attributes:
        preset: A preset's name; with an assignment a name for messages and files.
        images: Calibrate on at most so many images.
        training: How to train with fake-quantizers; None is post-training quantization.
        seed: Seed of everything random.
        first_last_bits: Bits of the first and last layers and of the decoder's attention to prompts; None for the
            preset's own.
        assignment: Bits of the weights layer by layer, in place of the preset's.
        activation_bits: Bits of the layers' inputs, for an assignment; None keeps them in float.
    """

    preset: str
    images: int = 50
    training: TrainingSettings | None = None
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
        training: TrainingSettings | None = None,
        seed: int = 0,
    ) -> QuantizationJob:
        """A job with bits layer by layer, named after them.

        Args:
            assignment: Bits of the weights.
            activation_bits: Bits of the layers' inputs, 2 to 8; None keeps them in float.
            images: As above.
            training: As above.
            seed: As above.

        Example:
            >>> QuantizationJob.mixed(Assignment.load("bits.json")).preset
            'w2-3-4-8a8'
        """
        name = f"w{'-'.join(map(str, assignment.counts()))}a{activation_bits or 16}"
        return cls(name, images, training, seed, assignment=assignment, activation_bits=activation_bits)

    @property
    def recorded(self) -> dict[str, Any]:
        """What the result depends on, as plain values."""
        own = {key: value for key, value in vars(self).items() if key not in ("training", "assignment")}
        return {
            **own,
            "assignment": None if self.assignment is None else asdict(self.assignment),
            "training": None if self.training is None else self.training.recorded,
        }

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
    calibration: str | None = None,
    train_data: str | None = None,
    val_data: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    log_dir: str | os.PathLike[str] | None = None,
) -> SAM2Base:
    """Quantize a float model that has a name into a packed file. Run again, it goes on where it stopped.

    Finished steps are kept in ``OUTPUT.work`` beside the file until it is written. A run with the same settings and
    another name in the same folder goes on from there too. In a process that torchrun or srun started it is one rank of
    several: the first calibrates and writes, and all train.

    Args:
        model: What ``load_model`` takes: "embedded", a checkpoint or folder of transformers, an official name.
        job: How.
        output: The packed ``.safetensors`` file to write.
        calibration: A folder of images, or "embedded" for procedural ones, which embedded models have by default.
        train_data: Data sets as :func:`~qsam2_ao.data.mixture.parse_sources` reads them, or "embedded" for procedural
            clips, which embedded models have by default; for a job with training.
        val_data: Likewise, to judge the training by; by default a part of ``train_data`` is set aside.
        checkpoint: Of an official name or config.
        device: Where to calibrate and train.
        log_dir: A folder for the training's metrics.

    Returns:
        The quantized model, as it was saved.

    Raises:
        QSAM2Error: No data are named, the model is quantized already, another run has the folder, or a step failed; the
            message says which layer, file or setting. What can be known before the first step (data, recipe, the places
            of the file and the log, the room for the file) is said before it.
        KeyboardInterrupt: Ctrl-C; finished steps and the training so far are kept.

    Example:
        >>> quantize_to_file("embedded", QuantizationJob("w4a8", images=10), "w4a8.safetensors")  # doctest: +SKIP
    """
    output = Path(output)
    calibration = data_for(model, calibration, "calibration")
    train_data = EMBEDDED if job.training is None else data_for(model, train_data, "train_data")
    with joined(place_from(os.environ), device) as device:
        if job.training is not None:
            importlib.import_module("qsam2_ao.training")  # says before the calibration what is missing
            if log_dir is not None:
                from ..training.metrics import check_log

                check_log(log_dir)
        loaded = _loaded(model, job, output, checkpoint, device)
        data = calibration_source(calibration, job.images, loaded.image_size)
        training = None
        if job.training is not None:
            from .training import training_data

            training = training_data(train_data, val_data, job.training, loaded, job.seed)
        written = output, work_folder(output), log_dir
        settings = {
            **job.recorded,
            "model": fingerprint(model),
            "checkpoint": fingerprint(checkpoint),
            "calibration": fingerprint(calibration, written),
            "train_data": sources_fingerprint(train_data, written) if job.training else None,
            "val_data": sources_fingerprint(val_data, written),
            "versions": versions("qsam2_ao", "torch"),
        }
        with shared_workspace(output, settings) as work:
            quantized = quantize_model(
                loaded, job, output, work, calibration_data=data, training=training, log_dir=log_dir
            )
    return quantized


def _loaded(
    model: str, job: QuantizationJob, output: Path, checkpoint: str | os.PathLike[str] | None, device: str
) -> SAM2Base:
    """The float model, once it is known that its result can be written."""
    check_output_file(output, ".safetensors")
    loaded = load_model(model, checkpoint, device)
    if stage_of(loaded).layers:
        raise QSAM2Error(f"{model} is quantized already; quantize its float model instead")
    if job.assignment is not None:
        job.assignment.check_model(loaded)
    model_config(loaded)  # without it the result could not be saved
    check_output_file(output, ".safetensors", _room(loaded, job))
    return loaded


def work_folder(output: Path) -> Path:
    """Where a file that is made has its work folder."""
    return output.parent / f"{output.name}.work"


@contextmanager
def shared_workspace(output: Path, settings: Mapping[str, Any]) -> Iterator[Workspace]:
    """The work folder beside a file, which one run at a time has, with all of its ranks; it goes when the block ends.

    Args:
        output: The file that is made. An earlier run may have left the folder beside another one.
        settings: All that the file depends on.

    Raises:
        QSAM2Error: Another run has it, or it cannot be written.
    """
    locked: list[Workspace] = []  # in the first rank
    with ExitStack() as stack:

        def open_locked() -> Workspace:
            others = sorted(output.parent.glob("*.work"))
            work = Workspace(work_folder(output), settings, others)
            stack.enter_context(work.locked())
            locked.append(work)
            return work

        work = from_first_rank(open_locked, "open the work folder")
        try:
            yield work
        except BaseException:
            if locked and work.untouched:  # nothing to go on with
                stack.close()
                work.discard()
            raise

        def remove() -> None:
            stack.close()  # no folder goes while a file in it is open, on some systems
            work.discard()

        from_first_rank(remove, "remove the work folder")


def write_by_way_of(work: Workspace, output: Path, save: Callable[[Path], object]) -> None:
    """Make a file in the work folder and move it to its place, once for all ranks.

    Of a run that is killed meanwhile nothing but the work folder is left.

    Args:
        work: Its folder is in the same file system as the file.
        output: The file.
        save: Called with the path to write to.
    """

    def write() -> None:
        path = work.folder / f"done{output.suffix}"
        save(path)
        os.replace(path, output)

    from_first_rank(write, f"write {output}")


def quantize_model(
    model: SAM2Base,
    job: QuantizationJob,
    output: Path,
    work: Workspace,
    *,
    calibration_data: CalibrationData,
    training: TrainingData | None = None,
    log_dir: str | os.PathLike[str] | None = None,
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
        log_dir: A folder for the training's metrics.

    Returns:
        The quantized model, as it was saved.

    Raises:
        QSAM2Error: A step failed; the message says which layer, file or setting.
        KeyboardInterrupt: Ctrl-C; finished steps and the training so far are kept.
    """
    _say(f"{job.preset}: calibrating (VRC, GPTQ)")
    path = work.folder / f"{job.preset}-prepared.pt"
    made: list[SAM2Base] = []
    from_first_rank(lambda: made.append(_prepare(model, job, path, calibration_data)), "calibrate the model")
    # The other ranks read what the first has written.
    prepared = made[0] if made else _prepare(model, job, path, calibration_data)
    if job.training is not None:
        from .training import train_as, training_data

        _say(f"{job.preset}: training (LSC, each part from its float twin), {counted(job.training.steps, 'step')}")
        result = train_as(
            job.training,
            prepared,
            training or training_data(EMBEDDED, None, job.training, model, job.seed),
            seed=job.seed,
            distill_from=model,
            partwise=True,
            checkpoint=work.folder / f"{job.preset}-training.pt",
            log_dir=log_dir,
            description=f"{job.preset} QAT",
        )
        _say(f"{job.preset}: {result.selected}")
    _say(f"{job.preset}: packing into {output}")
    quantized = convert_qsam2(prepared.eval())
    write_by_way_of(work, output, lambda path: save_qsam2(quantized, path))
    return quantized


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
        keep=(keep := path.with_name(f"{job.preset}-calibration.pt")),
    )
    stage = stage_of(prepared)
    info = dict(stage.info or {})
    if job.assignment is not None:
        info["qconfig"] = job.preset
    elif job.first_last_bits is not None:
        info["qconfig"] = f"{job.preset}, first and last layers and attention to prompts {job.first_last_bits} bits"
    set_stage(prepared, replace(stage, info=info))
    save_torch({"state": prepared.state_dict(), "info": info}, path)
    keep.unlink(missing_ok=True)
    return prepared


def _say(text: str) -> None:
    """A note, once for all ranks."""
    if rank() == 0:
        note(text)


def _room(model: SAM2Base, job: QuantizationJob) -> int:
    """Bytes that the prepared model, the state of its training, and the packed file take together, at most."""
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    room = size + size // 4
    if job.training is not None:
        from .training import room_to_train

        room += room_to_train(model)
    return room


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
