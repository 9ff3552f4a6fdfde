"""The training loop: one for the float model and for models with fake-quantizers.

Nothing in it knows what the model is made of. A step's randomness is a function of (seed, step), an
interruption is honoured between two steps, and a resumed run ends with the very bits of an uninterrupted one: on the
CPU also beside other programs, and for a model too small for two threads whatever the number of threads is.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import DataError, NonFiniteError
from ..interrupts import interrupts_between_steps
from ..progress import tqdm
from ..quantizers.ranges import range_parameters
from ..ranks import bare, mean_over_ranks, rank
from ..threads import deterministic_on_cpu, one_thread_if_small
from .divergence import check_ranges, name_culprit
from .observers import observed_state
from .resume import TrainResult, load_checkpoint, read_checkpoint, save_checkpoint
from .step import autocast_to, copy_state, move_average, naming_step, randomness_of_step, warmup_and_cosine

__all__ = ["TrainResult", "read_checkpoint", "train"]

Batch = TypeVar("Batch")
Output = TypeVar("Output")


def train(
    model: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    loss: Callable[[Output, Batch], Tensor],
    *,
    steps: int,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
    weight_decay: float = 0.01,
    warmup: int = 0,
    accumulate: int = 1,
    clip: float | None = 1.0,
    ema: float | None = None,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    forward: Callable[[nn.Module, Batch], Output] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 200,
    checkpoint_minutes: float | None = 5.0,
    schedule: Callable[[int], float] | None = None,
    on_step: Callable[[TrainResult], None] | None = None,
    on_resume: Callable[[TrainResult], None] | None = None,
    progress: bool = True,
    description: str = "train",
) -> TrainResult:
    """Train a model in place, with a linear warm-up and a cosine decay to zero.

    Args:
        model: Any module; it and its modules are left in the modes (train or eval) in which they came. In
            DistributedDataParallel, every rank calls this alike with its own part of the batches, and the first one
            writes the checkpoints, which all ranks read: on several machines they are in a folder that these share.
        batches: Called with the number of the first batch that is needed (not 0 after a resume); gives the batches from
            there on.
        loss: From the model's output and the batch to a scalar.
        steps: The number of steps of the whole training.
        lr: Peak learning rate of the default AdamW; not used where ``optimizer`` is given.
        optimizer: Another optimizer over the model's parameters; each group's own learning rate is its peak.
        weight_decay: Of the default AdamW, for parameters of two or more dimensions.
        warmup: Steps until the peak.
        accumulate: Batches in a step; its gradient is the mean of theirs.
        clip: Largest norm of the gradient; None doesn't limit it.
        ema: Decay of a running average of the model's state (0.999 averages about 1000 steps; less at the
            start); None keeps none.
        seed: Seed of every step's randomness. The global random state is left as it was.
        autocast: Run the forward pass in this dtype, for example ``torch.bfloat16``.
        forward: How to run the model on a batch; ``model(batch)`` by default.
        checkpoint: A file to continue from where it exists, and to save to every ``checkpoint_every`` steps,
            on an interruption and at the end.
        checkpoint_every: Steps between two saves.
        checkpoint_minutes: Save also when the last save is this long ago; None saves by steps alone.
        schedule: From a step to its learning rate as a fraction of the peak, instead of warm-up and cosine. A
            training with one may be resumed with another number of steps.
        on_step: Called after every step with the result so far.
        on_resume: Called once with what a checkpoint has, before the next step: the run that wrote it may have ended
            before ``on_step`` had.
        progress: Whether to show a bar with the loss and the remaining time.
        description: The bar's title.

    Returns:
        The losses and, with ``ema``, the averaged state.

    Raises:
        CheckpointError: The checkpoint is damaged, foreign, or does not fit the model or the settings.
        NonFiniteError: The loss or its gradient is NaN or infinite, or a clipping range collapsed or ran away; the
            message names the step and the layer, and the last checkpoint is from before.
        DataError: The batches end before the steps do.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGUSR1, once the step under way is done and saved; a second one does not
            wait for it, and the last checkpoint stands.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> data = [(torch.ones(4, 2), torch.ones(4, 1))] * 10
        >>> result = train(
        ...     model,
        ...     lambda first: data[first:],
        ...     lambda output, batch: (output - batch[1]).square().mean(),
        ...     steps=10,
        ...     forward=lambda model, batch: model(batch[0]),
        ...     progress=False,
        ... )
        >>> len(result.losses)
        10
    """
    if optimizer is None:
        optimizer = _adamw(model, lr, weight_decay)
    training = _Training(model, optimizer, loss, forward, seed=seed, clip=clip, ema=ema, autocast=autocast)
    result, inner = training.result, bare(model)
    settings = {"steps": steps if schedule is None else None, "seed": seed, "ema": ema}
    if accumulate != 1:
        settings["accumulate"] = accumulate
    if checkpoint is not None and Path(checkpoint).exists():
        load_checkpoint(Path(checkpoint), inner, optimizer, result, settings)
        if on_resume is not None:
            on_resume(result)
    saved, saved_at = result.step, time.monotonic()
    whole = True  # not while a step is under way, which a second interruption ends anywhere
    # Data-parallel ranks hold the same state: one of them writes it, and shows the bar.
    main = rank() == 0

    def save() -> None:
        nonlocal saved, saved_at
        if saved == result.step:
            return
        with naming_step(result.step):
            check_ranges(inner)
        if checkpoint is not None and main:
            save_checkpoint(Path(checkpoint), inner, optimizer, result, settings)
        saved, saved_at = result.step, time.monotonic()

    modes = [(module, module.training) for module in model.modules()]
    bar = tqdm(total=steps, initial=result.step, desc=description, disable=not (progress and main), dynamic_ncols=True)
    try:
        model.train()
        stream = iter(batches(result.step * accumulate) if result.step < steps else ())
        with (
            bar,
            one_thread_if_small(model),
            deterministic_on_cpu(model),
            interrupts_between_steps(_any_rank(model)) as interruptible,
        ):
            while result.step < steps:
                with interruptible():
                    parts = list(islice(stream, accumulate))
                if len(parts) < accumulate:
                    wanted = "as many as steps" if accumulate == 1 else f"{accumulate} for each step"
                    raise DataError(f"the batches ended after step {result.step} of {steps}; give {wanted}")
                rate = warmup_and_cosine(result.step, steps, warmup) if schedule is None else schedule(result.step)
                whole = False
                with naming_step(result.step):
                    training.step(parts, rate)
                whole = True
                bar.update()
                bar.set_postfix(loss=f"{np.mean(result.losses[-50:]):.4f}", refresh=False)
                with interruptible():
                    overdue = checkpoint_minutes is not None and time.monotonic() - saved_at > 60 * checkpoint_minutes
                    if result.step % checkpoint_every == 0 or overdue:
                        save()
                    if on_step is not None:
                        on_step(result)
    except KeyboardInterrupt:
        if whole:
            save()
        raise
    finally:
        for module, training_mode in modes:
            module.training = training_mode
    save()
    return result


def _any_rank(model: nn.Module) -> Callable[[bool], bool] | None:
    """Whether any rank of a data-parallel model is to stop: one that stops alone leaves the others waiting."""
    if not isinstance(model, DistributedDataParallel):
        return None
    device = next(model.parameters()).device
    return lambda stop: bool(mean_over_ranks(torch.tensor(float(stop), device=device)) > 0)


def _adamw(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Without decay of gains, biases and learned ranges."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ranges = {id(parameter) for parameter in range_parameters(model)}
    decayed = {id(parameter) for parameter in parameters if parameter.ndim >= 2} - ranges
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
            {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(0.9, 0.98),
    )


class _Training(Generic[Batch, Output]):
    """A model, its optimizer, and what is done so far."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Output, Batch], Tensor],
        forward: Callable[[nn.Module, Batch], Output] | None,
        *,
        seed: int,
        clip: float | None,
        ema: float | None,
        autocast: torch.dtype | None,
    ) -> None:
        self._bare = bare(model)
        self.result = TrainResult(average=None if ema is None else copy_state(self._bare.state_dict()))
        self._model, self._optimizer, self._loss = model, optimizer, loss
        self._forward = forward if forward is not None else lambda module, batch: module(batch)
        self._seed, self._clip, self._ema, self._autocast = seed, clip, ema, autocast
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._copied = observed_state(self._bare)
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]

    def step(self, parts: Sequence[Batch], factor: float) -> None:
        """Forward and backward of every part, and an update at a fraction of the peak learning rates."""
        result = self.result
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        self._optimizer.zero_grad(set_to_none=True)
        losses = [self._backward(batch, number, len(parts)) for number, batch in enumerate(parts)]
        limit = math.inf if self._clip is None else self._clip
        result.gradient_norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        if not math.isfinite(float(result.gradient_norm)):
            raise self._not_finite("norm of the gradient", float(result.gradient_norm))
        self._optimizer.step()
        result.step += 1
        result.losses.append(sum(losses) / len(losses))
        if result.average is not None and self._ema is not None:
            decay = min(self._ema, (result.step + 1) / (result.step + 10))
            move_average(result.average, self._bare.state_dict(), decay, self._copied)

    def _backward(self, batch: Batch, number: int, count: int) -> float:
        """Add a part's gradient, and give its loss, which is the mean over the ranks of a data-parallel model."""
        model, step = self._model, self.result.step
        with randomness_of_step(model, self._seed, step, number), _without_exchange(model, number < count - 1):
            with autocast_to(model, self._autocast):
                value = self._loss(self._forward(model, batch), batch)
            # All ranks hear of a loss that is not finite, and none waits for another that has given up.
            mean = mean_over_ranks(value) if isinstance(model, DistributedDataParallel) else value.detach()
            loss = float(mean)
            if not math.isfinite(loss):
                raise self._not_finite("loss", loss)
            (value / count).backward()
        return loss

    def _not_finite(self, what: str, value: float) -> NonFiniteError:
        culprit = name_culprit(self._model)
        return NonFiniteError(f"the {what} is {value}; {culprit}; lower the learning rate or check the data")


def _without_exchange(model: Any, yes: bool) -> AbstractContextManager[Any]:
    """Only a step's last part has the ranks exchange their gradients."""
    return model.no_sync() if yes and isinstance(model, DistributedDataParallel) else nullcontext()
