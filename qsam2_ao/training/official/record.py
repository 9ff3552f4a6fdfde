"""What a training keeps of its quantization: the calibrated model beside its checkpoints, and the record in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import CheckpointError
from ...files import load_torch, save_torch

#: The trainer's own name for the checkpoint that it resumes from.
TRAINER_CHECKPOINT = "checkpoint.pt"
#: The calibrated model, in the folder of the checkpoints.
CALIBRATED = "qsam2_calibrated.pt"
#: Where a checkpoint of ``QATTrainer`` has what the trainer itself does not save.
ENTRY = "qsam2"
_FORMAT = "qsam2_ao.calibrated/1"


def save_calibrated(
    folder: str | os.PathLike[str], state: Mapping[str, Tensor], info: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Keep a calibrated model for the next start.

    Args:
        folder: That of the trainer's checkpoints.
        state: The prepared model's state.
        info: Its record.
        settings: What it depends on.

    Raises:
        QSAM2Error: The file cannot be written.
    """
    content = {"format": _FORMAT, "settings": dict(settings), "info": dict(info), "model": dict(state)}
    save_torch(content, Path(folder) / CALIBRATED)


def load_calibrated(
    folder: str | os.PathLike[str], settings: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The calibrated model of an earlier start.

    Args:
        folder: That of the trainer's checkpoints.
        settings: Those of this start.

    Returns:
        State and record, or None where there is none.

    Raises:
        CheckpointError: It is damaged or was made with other settings, naming the first.
    """
    path = Path(folder) / CALIBRATED
    if not path.exists():
        return None
    try:
        content = read_plain(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete it to calibrate again") from error
    if not is_calibrated(content):
        raise CheckpointError(f"{path} is no calibrated model; delete it to calibrate again")
    for key, value in settings.items():
        if content["settings"].get(key) != value:
            raise CheckpointError(
                f"{path} was calibrated with {key} {content['settings'].get(key)!r}, not {value!r}; choose another "
                "launcher.experiment_log_dir, or delete the file to calibrate again"
            )
    return content["model"], content["info"]


def record_of(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """How the model in a trainer's checkpoint was quantized.

    Args:
        checkpoint: A file of ``QATTrainer``, which holds the record; or of SAM2's trainer, with the calibrated model
            beside it.

    Raises:
        CheckpointError: There is no record, or a file is damaged.
    """
    path = Path(checkpoint)
    entry = read_plain(path).get(ENTRY)
    if isinstance(entry, dict):
        return entry["info"]
    beside = path.with_name(CALIBRATED)
    if beside.exists():
        return read_plain(beside)["info"]
    raise CheckpointError(
        f"{path} has no record of its quantization, and there is no {CALIBRATED} beside it; keep both in one folder, "
        "or train with trainer._target_: qsam2_ao.training.official.QATTrainer, whose checkpoints hold the record"
    )


def is_calibrated(content: Mapping[str, Any]) -> bool:
    """Whether a file holds the calibrated model before its training, and no checkpoint of that."""
    return content.get("format") == _FORMAT


def read_plain(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of ``torch.save`` without running code from it, leaving tensors on disk until they are used.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is absent, damaged, or holds something else than a dict of plain values and tensors.
    """
    content = load_torch(path, "is damaged or no checkpoint of a training", mmap=True)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; it is no checkpoint of a training")
    return content
