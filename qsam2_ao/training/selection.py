"""Training that never ends worse than it began: held-out batches decide between its averaged weights and its start.

Where parts of the model learn apart, they decide for each part.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import CheckpointError, DataError
from ..files import load_torch, save_torch
from ..graph.paths import is_inside
from ..quantizers.statistics import world_size
from ..ranks import rank
from .observers import has_range, torch_ao_quantizers
from .resume import State, TrainResult
from .step import copy_state, randomness_of_step

Batch = TypeVar("Batch")
Output = TypeVar("Output")

_FORMAT = "qsam2_ao.selection/2"
#: Name of the part that a model is where it is judged as a whole.
_WHOLE = ""


@dataclass
class Selected:
    """What the held-out batches chose.

    Attributes:
        steps: The step whose averaged weights are the best, by part; of a model that was judged as a whole, its one
            part is called "". 0 is the start, before any training.
        losses: The held-out loss of every step that was judged, the start's at 0, by part.
        state: The best state, put together of the parts' best.
    """

    steps: dict[str, int]
    losses: dict[str, dict[int, float]]
    state: State = field(repr=False)

    @property
    def step(self) -> int:
        """The latest step that anything is kept of; 0 where all is as it was at the start."""
        return max(self.steps.values())

    @property
    def judged(self) -> dict[int, float]:
        """The held-out loss of every step that was judged, summed over the parts."""
        judged: dict[int, float] = {}
        for losses in self.losses.values():
            for step, loss in losses.items():
                judged[step] = judged.get(step, 0.0) + loss
        return judged

    @property
    def loss(self) -> float:
        """The held-out loss of the best state."""
        return sum(losses[self.steps[part]] for part, losses in self.losses.items())

    @property
    def gain(self) -> float:
        """By which share the held-out loss fell from the start to the best state: 0 where the start is kept."""
        start = self.judged[0]
        return 1 - self.loss / start if start > 0 else 0.0

    def __str__(self) -> str:
        start = self.judged[0]
        if self.step == 0:
            return f"the start is kept: no step had a held-out loss below its {start:.4f}"
        names: dict[int, list[str]] = {}
        for part, step in self.steps.items():
            names.setdefault(step, []).append(part)
        kept = [
            ("the start" if step == 0 else f"step {step}") + (f" of {', '.join(parts)}" if _WHOLE not in parts else "")
            for step, parts in sorted(names.items())
        ]
        return f"held-out loss {self.loss:.4f}, {start:.4f} at the start; kept: {'; '.join(kept)}"


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
        parts: Where parts of the model learn apart: from its output to the loss of each part, by its module's name.
            Each part then ends with its own best weights, and what is in no part as it began. A part that does not run
            on a batch may be left out; ``loss`` is not used. The innermost part owns a weight.
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
        parts: Callable[[Output], Mapping[str, Tensor]] | None = None,
        every: int,
        steps: int,
        seed: int = 0,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._batches = list(batches)
        if not self._batches:
            raise DataError("there are no held-out batches to judge a training by")
        self._judged = copy.deepcopy(model).eval().requires_grad_(False)
        self._forward, self._seed = forward, seed
        self._loss, self._parts = loss, parts
        self._every, self._steps = every, steps
        self._path = None if path is None else Path(path)
        start = copy_state(model.state_dict())
        if self._path is not None and self._path.exists():
            self.best = _read(self._path, start)
        else:
            judged = self.judge(start)
            self.best = Selected(dict.fromkeys(judged, 0), {part: {0: loss} for part, loss in judged.items()}, start)

    def __call__(self, result: TrainResult) -> None:
        """Judge the averaged weights where it is time to, once."""
        best = self.best
        due = result.step % self._every == 0 or result.step == self._steps
        if not due or result.step in best.judged:
            return
        if result.average is None:
            raise DataError("a selection needs averaged weights; give the training an ema")
        judged = self.judge(result.average)
        if judged.keys() != best.losses.keys():
            raise CheckpointError(
                f"{self._path} cannot be continued from (it was judged by other parts: {sorted(best.losses)}, now "
                f"{sorted(judged)}); delete it and run again"
            )
        better = {part for part, loss in judged.items() if loss < best.losses[part][best.steps[part]]}
        for part, loss in judged.items():
            best.losses[part][result.step] = loss
        best.steps.update(dict.fromkeys(better, result.step))
        better_state = {name: value for name, value in result.average.items() if _owner(name, judged) in better}
        best.state |= copy_state(better_state)
        if self._path is not None and rank() == 0:
            save_torch({"format": _FORMAT, **vars(best)}, self._path)

    @torch.no_grad()
    def judge(self, state: State) -> dict[str, float]:
        """The held-out loss of a state by part: a mean over the batches in which it runs."""
        model: Any = self._judged
        model.load_state_dict(state)
        model.eval()
        for _, quantizer in torch_ao_quantizers(model):
            if has_range(quantizer):
                quantizer.disable_observer()
        model.training = True  # chooses the training's prompts; its parts, quantizers included, stay in eval mode
        losses: dict[str, list[float]] = {}
        for number, batch in enumerate(self._batches):
            with randomness_of_step(model, self._seed, number):
                output = self._forward(model, batch)
                found = {_WHOLE: self._loss(output, batch)} if self._parts is None else self._parts(output)
                for part, loss in found.items():
                    losses.setdefault(part, []).append(float(loss))
        judged = {part: sum(values) / len(values) for part, values in losses.items()}
        if world_size() > 1:
            shared = [judged]
            dist.broadcast_object_list(shared)
            judged = shared[0]
        return judged


def _owner(name: str, parts: Iterable[str]) -> str | None:
    """The innermost of the parts that a value of a model's state is in, or None."""
    return max((part for part in parts if part == _WHOLE or is_inside(name, part)), key=len, default=None)


def _read(path: Path, start: State) -> Selected:
    content = load_torch(path, "cannot be continued from", "; delete it and run again")
    try:
        state = {name: content["state"][name].to(value.device) for name, value in start.items()}
        if content["format"] != _FORMAT or any(state[name].shape != value.shape for name, value in start.items()):
            raise KeyError("it is of another model")
        return Selected(content["steps"], content["losses"], state)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be continued from ({error}); delete it and run again") from error
