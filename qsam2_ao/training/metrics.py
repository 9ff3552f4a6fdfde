"""The log of a training: one JSON object a line, and tensorboard's files where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import QSAM2Error
from ..files import atomic_write, check_output_folder
from ..quantizers import range_parameters
from .range_metrics import RangeMetrics
from .resume import TrainResult

FILE = "metrics.jsonl"


class MetricsLog:
    """Writes what a training does into a folder; call it after every step.

    ``metrics.jsonl`` has a line for every ``every`` steps: "step", "loss", "loss/TERM" for each term before it is
    weighted (of the step's last part on this rank), "lr/weights", "lr/vectors" and "lr/ranges", "gradient_norm" before
    clipping, "held_out" where held-out batches were judged, "seconds" a step, and what
    :class:`~qsam2_ao.training.range_metrics.RangeMetrics` finds. Lines of steps that a training does again are removed,
    be it a resumed one or another one in the same folder.

    Args:
        folder: Where to write; it is made.
        model: The model before the training.
        optimizer: Its optimizer.
        every: Steps between two lines.
        steps: The training's number of steps; the last one has a line too.

    Raises:
        QSAM2Error: The folder cannot be written, or has another file of that name.

    Example:
        >>> log = MetricsLog("logs", prepared, qat_optimizer(prepared, Rates()), steps=100)
        >>> log.close()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int = 10,
        steps: int,
    ) -> None:
        self._path = Path(folder) / FILE
        self._every, self._steps = every, steps
        self._optimizer, self._group_of = optimizer, _groups_by_kind(model, optimizer)
        self._ranges = RangeMetrics(model)
        self._writer: Any = None
        self._started = False
        #: The step of the last line, and when it was written.
        self._last: tuple[int, float] | None = None
        self._ranges.counting = True

    def __call__(self, result: TrainResult, terms: Mapping[str, Tensor], held_out: float | None = None) -> None:
        """Write a line where it is time to.

        Args:
            result: The training so far.
            terms: The terms of the step's loss.
            held_out: The loss of held-out batches, where they were judged after this step.
        """
        if not self._started:
            self._start(result.step)
        if held_out is not None or result.step % self._every == 0 or result.step in (1, self._steps):
            self._write(result.step, self._figures(result, terms, held_out))
        after = result.step + 1
        self._ranges.counting = after % self._every == 0 or after == self._steps
        if self._last is None:  # the time of the first step is not known
            self._last = (result.step, time.monotonic())

    def close(self) -> None:
        """Close the files, and stop watching the model."""
        self._ranges.close()
        if self._writer is not None:
            self._writer.close()

    def _figures(self, result: TrainResult, terms: Mapping[str, Tensor], held_out: float | None) -> dict[str, float]:
        figures = {"loss": result.losses[-1], **{f"loss/{name}": float(term) for name, term in terms.items()}}
        # By their place: to load an optimizer's state makes other groups.
        figures |= {f"lr/{kind}": self._optimizer.param_groups[i]["lr"] for kind, i in self._group_of.items()}
        if result.gradient_norm is not None:
            figures["gradient_norm"] = float(result.gradient_norm)
        if held_out is not None:
            figures["held_out"] = held_out
        if self._last is not None:
            (step, then), now = self._last, time.monotonic()
            figures["seconds"] = (now - then) / (result.step - step)
            self._last = (result.step, now)
        return figures | self._ranges.take()

    def _start(self, step: int) -> None:
        """Go on behind the lines of the steps before, and let nothing of later ones stay."""
        kept = [line for line in _lines(self._path) if line["step"] < step]
        with atomic_write(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._path.parent), purge_step=step)
        self._started = True

    def _write(self, step: int, figures: Mapping[str, float]) -> None:
        try:
            with open(self._path, "a") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
        except OSError as error:
            raise QSAM2Error(f"cannot write {self._path}: {error.strerror or error}") from error
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, float]]:
    """What a training has logged.

    Args:
        folder: Its ``--log-dir``.

    Returns:
        One dict a line, by the step. A last line that a killed run left half written is left out.

    Raises:
        QSAM2Error: The file cannot be read, or is none of a training.

    Example:
        >>> read_metrics("logs")  # doctest: +SKIP
        [{'step': 1, 'loss': 1.93, ...}, ...]
    """
    return _lines(Path(folder) / FILE)


def check_log(folder: str | os.PathLike[str]) -> None:
    """Say before the work for it starts that a training cannot be logged in a folder; nothing is left there.

    Args:
        folder: Its ``--log-dir``.

    Raises:
        QSAM2Error: It cannot be written, or has another file of the log's name.

    Example:
        >>> check_log("logs")
    """
    check_output_folder(folder, files=[FILE])
    read_metrics(folder)


def _lines(path: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    if not path.exists():
        return found
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise QSAM2Error(f"cannot read {path} ({error}); choose another folder for the log") from error
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError:
            if number == len(lines):
                break
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise QSAM2Error(
                f"{path}, line {number} is not of a training's log; choose another folder, or remove the file"
            )
        found.append(line)
    return found


def _groups_by_kind(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """For weights, vectors and ranges the number of the optimizer's group that has them."""
    ranges = {id(parameter) for parameter in range_parameters(model)}
    found: dict[str, int] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            kind = "ranges" if id(parameter) in ranges else "vectors" if parameter.ndim < 2 else "weights"
            found.setdefault(kind, number)
    return found
