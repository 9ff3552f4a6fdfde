"""Training that never ends worse than it began: held-out batches decide between its averaged weights and its start."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import CheckpointError, DataError
from ..files import load_torch, save_torch
from ..quantizers.statistics import world_size
from ..ranks import rank
from .resume import State, TrainResult
from .step import copy_state, randomness_of_step

Batch = TypeVar("Batch")
Output = TypeVar("Output")

_FORMAT = "qsam2_ao.selection/1"


@dataclass
class Selected:
    """What the held-out batches chose.

    Attributes:
        step: The step whose averaged weights are the best; 0 is the start, before any training.
        losses: The held-out loss of every step that was judged, the start's at 0.
        state: The best state.
    """

    step: int
    losses: dict[int, float]
    state: State = field(repr=False)

    @property
    def gain(self) -> float:
        """By which share the held-out loss fell from the start to the best step: 0 where the start is kept."""
        start = self.losses[0]
        return 1 - self.losses[self.step] / start if start > 0 else 0.0

    def __str__(self) -> str:
        if self.step == 0:
            return f"the start is kept: no step had a held-out loss below its {self.losses[0]:.4f}"
        return (
            f"step {self.step} is kept: held-out loss {self.losses[self.step]:.4f}, {self.losses[0]:.4f} at the start"
        )


class Selection(Generic[Batch, Output]):
    """Judges a training's averaged weights from time to time, and remembers the best; call it after every step.

    The same batches and prompts judge every state, so that small differences count. Ranges and statistics stay as
    they are while it judges. Data-parallel ranks judge the same batches at the same time, and what the first one finds
    holds for all.

    Args:
        model: The model as it is before the first step; a copy of it is kept.
        batches: Held-out batches, none of which is trained on.
        loss: From the model's output and the batch to a scalar, as for :func:`~qsam2_ao.training.loop.train`.
        forward: How to run the model on a batch.
        every: Steps between two judgements. The last step of the training is one to judge as well.
        steps: The training's number of steps.
        seed: Seed of the prompts.
        path: A file that keeps the best state of an interrupted training; None keeps it in memory alone.

    Raises:
        DataError: There are no batches.
        CheckpointError: ``path`` is damaged or of another model.

    Example:
        >>> loss, forward = lambda output, batch: output.square().mean(), lambda model, batch: model(batch)
        >>> selection = Selection(network, [inputs], loss, forward, every=1, steps=2)
        >>> batches = lambda first: [inputs, inputs]
        >>> result = train(network, batches, loss, forward=forward, steps=2, ema=0.9, on_step=selection)
        >>> network.load_state_dict(selection.best.state)
        <All keys matched successfully>
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        loss: Callable[[Output, Batch], Tensor],
        forward: Callable[[nn.Module, Batch], Output],
        *,
        every: int,
        steps: int,
        seed: int = 0,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._batches = list(batches)
        if not self._batches:
            raise DataError("there are no held-out batches to judge a training by")
        self._judged = copy.deepcopy(model).eval().requires_grad_(False)
        self._loss, self._forward, self._seed = loss, forward, seed
        self._every, self._steps = every, steps
        self._path = None if path is None else Path(path)
        start = copy_state(model.state_dict())
        if self._path is not None and self._path.exists():
            self.best = _read(self._path, start)
        else:
            self.best = Selected(0, {0: self.judge(start)}, start)

    def __call__(self, result: TrainResult) -> None:
        """Judge the averaged weights where it is time to, once."""
        due = result.step % self._every == 0 or result.step == self._steps
        if not due or result.step in self.best.losses:
            return
        if result.average is None:
            raise DataError("a selection needs averaged weights; give the training an ema")
        self.best.losses[result.step] = loss = self.judge(result.average)
        if loss < self.best.losses[self.best.step]:
            self.best.step, self.best.state = result.step, copy_state(result.average)
        if self._path is not None and rank() == 0:
            save_torch({"format": _FORMAT, **vars(self.best)}, self._path)

    @torch.no_grad()
    def judge(self, state: State) -> float:
        """The held-out loss of a state: a mean over the batches."""
        model: Any = self._judged
        model.load_state_dict(state)
        model.eval()
        model.training = True  # chooses the training's prompts; its parts, quantizers included, stay in eval mode
        losses = []
        for number, batch in enumerate(self._batches):
            with randomness_of_step(model, self._seed, number):
                losses.append(float(self._loss(self._forward(model, batch), batch)))
        loss = sum(losses) / len(losses)
        if world_size() > 1:
            shared = [loss]
            dist.broadcast_object_list(shared)
            loss = shared[0]
        return loss


def _read(path: Path, start: State) -> Selected:
    content = load_torch(path, "cannot be continued from", "; delete it and run again")
    try:
        state = {name: content["state"][name].to(value.device) for name, value in start.items()}
        if content["format"] != _FORMAT or any(state[name].shape != value.shape for name, value in start.items()):
            raise KeyError("it is of another model")
        return Selected(content["step"], content["losses"], state)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be continued from ({error}); delete it and run again") from error
