"""What a training has done so far, and the file that it goes on from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import load_torch, save_torch

if TYPE_CHECKING:
    from .selection import Selected

State = dict[str, Tensor]
_FORMAT, _FORMAT_1 = "qsam2_ao.training/2", "qsam2_ao.training/1"
_CONTENT: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "optimizer": dict,
    "average": (dict, type(None)),
    "step": int,
    "losses": Tensor,
    "settings": dict,
}


@dataclass
class TrainResult:
    """What a training leaves behind.

    Attributes:
        step: The number of steps done, those before a resume included.
        losses: The loss of every step.
        average: The running average of the model's state, or None where none was kept.
        selected: What held-out batches chose among the averages and the start, or None without such batches.
        gradient_norm: Of the last step, before it was clipped; None before the first.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    average: State | None = None
    selected: Selected | None = None
    gradient_norm: Tensor | None = None


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of :func:`~qsam2_ao.training.loop.train`.

    Args:
        path: The file.

    Returns:
        "model", "optimizer", "average" (or None), "step", "losses" and "settings".

    Raises:
        CheckpointError: The file is absent, damaged, of an older format or not a checkpoint of a training.
    """
    content = load_torch(path, "is damaged or not a training checkpoint", "; delete it to start again")
    if isinstance(content, dict) and content.get("format") == _FORMAT_1:
        raise CheckpointError(
            f"{path} is of an older version of this package, whose prepared models had their parameters, and so the "
            "optimizer its state, in another order; finish that training with it, or delete the file to start again"
        )
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this training loop; choose another file")
    for name, kind in _CONTENT.items():
        if name not in content or not isinstance(content[name], kind):
            found = type(content[name]).__name__ if name in content else "missing"
            raise CheckpointError(f"{path} is damaged: its {name!r} is {found}; delete it to start again")
    return content


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    result: TrainResult,
    settings: Mapping[str, float | None],
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: The file.
        model: The model that is trained.
        optimizer: Its optimizer.
        result: What is done so far.
        settings: What a resumed training must have in common.

    Raises:
        QSAM2Error: The file cannot be written.
    """
    content = {
        "format": _FORMAT,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": result.average,
        "step": result.step,
        "losses": torch.tensor(result.losses, dtype=torch.float64),
        "settings": dict(settings),
    }
    save_torch(content, path)


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    result: TrainResult,
    settings: Mapping[str, float | None],
) -> None:
    """Go on from a checkpoint: model, optimizer and result are what they were.

    Args:
        path: The file.
        model: The model to train.
        optimizer: Its optimizer.
        result: Is filled.
        settings: Those of this training.

    Raises:
        CheckpointError: It is damaged, foreign, or does not fit the model or the settings.
    """
    content = read_checkpoint(path)
    if content["settings"] != dict(settings):
        raise CheckpointError(
            f"{path} was made with {content['settings']}, not {settings}; use the same or delete the file"
        )
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        if result.average is not None:
            for name, value in content["average"].items():
                result.average[name] = value.to(result.average[name])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit this model or optimizer: {error}") from error
    result.step = content["step"]
    result.losses = content["losses"].tolist()
