"""A float model that has a name, trained on the user's videos -> a checkpoint to quantize."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import QSAM2Error
from ..files import check_output_file, save_torch
from ..ranks import joined, place_from
from ..stage import stage_of
from ..training.metrics import check_log
from ..training.resume import TrainResult
from ..training.settings import TrainingSettings
from ..workspace import fingerprint, versions
from .data import data_for, sources_fingerprint
from .models import load_model
from .quantize import shared_workspace, work_folder, write_by_way_of
from .training import room_to_train, train_as, training_data


def finetune_to_file(
    model: str,
    settings: TrainingSettings,
    output: str | os.PathLike[str],
    *,
    train_data: str | None = None,
    val_data: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    seed: int = 0,
    log_dir: str | os.PathLike[str] | None = None,
) -> TrainResult:
    """Fine-tune a float model on videos, and write a checkpoint as Meta's are. Run again, it goes on where it stopped.

    The checkpoint holds the averaged weights that did best on held-out clips, or the start where none did better. What
    is done is kept in ``OUTPUT.work`` until it is written. In a process that torchrun or srun started it is one rank of
    several.

    Args:
        model: As for ``load_model``: "embedded", a checkpoint, or an official config with its checkpoint.
        settings: How to train.
        output: The ``.pt`` file to write.
        train_data: Data sets as :func:`~qsam2_ao.data.mixture.parse_sources` reads them, or "embedded" for procedural
            clips, which embedded models have by default.
        val_data: Likewise, to judge by; by default a part of ``train_data`` is set aside.
        checkpoint: The checkpoint of an official config.
        device: Where to train.
        seed: Of the data and prompts.
        log_dir: A folder for the metrics.

    Returns:
        The losses and what was kept.

    Raises:
        QSAM2Error: No data are named, the model is quantized, another run has the folder, the data cannot be used or
            the file cannot be written.
        KeyboardInterrupt: Ctrl-C; the training so far is kept.

    Example:
        >>> finetune_to_file(
        ...     "sam2.1_hiera_tiny.pt", TrainingSettings(1000, lr=1e-5), "mine.pt", train_data="DAVIS"
        ... )  # doctest: +SKIP
    """
    output = Path(output)
    train_data = data_for(model, train_data, "train_data")
    with joined(place_from(os.environ), device) as device:
        check_output_file(output, ".pt")
        if log_dir is not None:
            check_log(log_dir)
        loaded = load_model(model, checkpoint, device)
        if stage_of(loaded).layers:
            raise QSAM2Error(
                f"{model} is quantized, and its float weights are gone: fine-tune the checkpoint that it was made of, "
                "and quantize the result; to train with quantizers in place, give qsam2 quantize --steps"
            )
        check_output_file(output, ".pt", room_to_train(loaded))
        data = training_data(train_data, val_data, settings, loaded, seed)
        written = output, work_folder(output), log_dir
        depends_on = {
            "command": "finetune",
            "training": settings.recorded,
            "seed": seed,
            "model": fingerprint(model),
            "checkpoint": fingerprint(checkpoint),
            "train_data": sources_fingerprint(train_data, written),
            "val_data": sources_fingerprint(val_data, written),
            "versions": versions("qsam2_ao", "torch"),
        }
        with shared_workspace(output, depends_on) as work:
            result = train_as(
                settings,
                loaded,
                data,
                seed=seed,
                checkpoint=work.folder / "training.pt",
                log_dir=log_dir,
                description="fine-tuning",
            )
            state = {name: value.cpu() for name, value in loaded.state_dict().items()}
            write_by_way_of(work, output, lambda path: save_torch({"model": state}, path))
    return result
