"""The training loop: one for the float model and for models with fake-quantizers.

Nothing in it knows what the model is made of. A step's randomness is a function of (seed, step), an
interruption is honoured between two steps, and a resumed run ends with the very bits of an uninterrupted one: on the
CPU also beside other programs, and for a model too small for two threads whatever the number of threads is.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import CheckpointError, NonFiniteError
from ..files import save_torch
from ..threads import deterministic_on_cpu, one_thread_if_small
from .divergence import check_ranges, name_culprit

State = dict[str, Tensor]
_FORMAT, _FORMAT_1 = "qsam2_ao.training/2", "qsam2_ao.training/1"


@dataclass
class TrainResult:
    """What a training leaves behind.

    Attributes:
        step: The number of steps done, those before a resume included.
        losses: The loss of every step.
        average: The running average of the model's state, or None where none was kept.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    average: State | None = None


def train(
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    loss: Callable[[Any, Any], Tensor],
    *,
    steps: int,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
    weight_decay: float = 0.01,
    warmup: int = 0,
    clip: float | None = 1.0,
    ema: float | None = None,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 200,
    checkpoint_minutes: float | None = None,
    schedule: Callable[[int], float] | None = None,
    on_step: Callable[[TrainResult], None] | None = None,
    progress: bool = True,
    description: str = "train",
) -> TrainResult:
    """Train a model in place, with a linear warm-up and a cosine decay to zero.

    Args:
        model: Any module; it is left in the mode (train or eval) in which it came.
        batches: Called with the number of the first step to do (not 0 after a resume); gives the batches from
            there on.
        loss: From the model's output and the batch to a scalar.
        steps: The number of steps of the whole training.
        lr: Peak learning rate of the default AdamW; not used where ``optimizer`` is given.
        optimizer: Another optimizer over the model's parameters; each group's own learning rate is its peak.
        weight_decay: Of the default AdamW, for parameters of two or more dimensions.
        warmup: Steps until the peak.
        clip: Largest norm of the gradient; None doesn't limit it.
        ema: Decay of a running average of the model's state (0.999 averages about 1000 steps; less at the
            start); None keeps none.
        seed: Seed of every step's randomness. The global random state is left as it was.
        autocast: Run the forward pass in this dtype, for example ``torch.bfloat16``.
        forward: How to run the model on a batch; ``model(batch)`` by default.
        checkpoint: A file to continue from where it exists, and to save to every ``checkpoint_every`` steps,
            on an interruption and at the end.
        checkpoint_every: Steps between two saves.
        checkpoint_minutes: Save also when the last save is this long ago.
        schedule: From a step to its learning rate as a fraction of the peak, instead of warm-up and cosine. A
            training with one may be resumed with another number of steps.
        on_step: Called after every step with the result so far.
        progress: Whether to show a bar with the loss and the remaining time.
        description: The bar's title.

    Returns:
        The losses and, with ``ema``, the averaged state.

    Raises:
        CheckpointError: The checkpoint is damaged, foreign, or does not fit the model or the settings.
        NonFiniteError: The loss is NaN or infinite, or a clipping range collapsed or ran away; the message names
            the step and the layer, and the last checkpoint is from before.
        KeyboardInterrupt: Ctrl-C, once the step under way is done and saved.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> data = [(torch.ones(4, 2), torch.ones(4, 1))] * 10
        >>> result = train(model, lambda first: data[first:], lambda y, b: (y - b[1]).square().mean(),
        steps=10, ...                forward=lambda m, b: m(b[0]), progress=False)
        >>> len(result.losses)
        10
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optimizer is None:
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=lr,
            betas=(0.9, 0.98),
        )
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    settings: dict[str, Any] = {"steps": steps if schedule is None else None, "seed": seed, "ema": ema}
    result = TrainResult(average=None if ema is None else _copy(model.state_dict()))
    if checkpoint is not None and Path(checkpoint).exists():
        _load(Path(checkpoint), model, optimizer, result, settings)
    saved, saved_at = result.step, time.monotonic()
    # Data-parallel ranks hold the same state: one of them writes it, and shows the bar.
    main = not (torch.distributed.is_available() and torch.distributed.is_initialized()) or (
        torch.distributed.get_rank() == 0
    )

    def save() -> None:
        nonlocal saved, saved_at
        if saved != result.step:
            with _naming_step(result.step):
                check_ranges(model)
        if checkpoint is not None and main and saved != result.step:
            _save(Path(checkpoint), model, optimizer, result, settings)
            saved, saved_at = result.step, time.monotonic()

    mode = model.training
    model.train()
    run = forward if forward is not None else lambda module, batch: module(batch)
    bar = tqdm(total=steps, initial=result.step, desc=description, disable=not (progress and main), dynamic_ncols=True)
    stream = iter(batches(result.step) if result.step < steps else ())
    try:
        with (
            bar,
            one_thread_if_small(model),
            deterministic_on_cpu(model),
            _interrupts_between_steps() as interruptible,
        ):
            while result.step < steps:
                with interruptible():
                    batch = next(stream, None)
                if batch is None:
                    raise ValueError(f"the batches ended after step {result.step} of {steps}; give as many as steps")
                factor = _schedule(result.step, steps, warmup) if schedule is None else schedule(result.step)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
                with _randomness_of_step(model, seed, result.step), _naming_step(result.step):
                    with _autocast(model, autocast):
                        value = loss(run(model, batch), batch)
                    number = float(value.detach())
                    if not math.isfinite(number):
                        raise NonFiniteError(
                            f"the loss is {number}; {name_culprit(model)}; lower the learning rate or check the data"
                        )
                    optimizer.zero_grad(set_to_none=True)
                    value.backward()
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, clip)
                optimizer.step()
                result.step += 1
                result.losses.append(number)
                if result.average is not None and ema is not None:
                    _average(result.average, model.state_dict(), min(ema, (result.step + 1) / (result.step + 10)))
                bar.update()
                bar.set_postfix(loss=f"{np.mean(result.losses[-50:]):.4f}", refresh=False)
                with interruptible():
                    overdue = checkpoint_minutes is not None and time.monotonic() - saved_at > 60 * checkpoint_minutes
                    if result.step % checkpoint_every == 0 or overdue:
                        save()
                    if on_step is not None:
                        on_step(result)
    except KeyboardInterrupt:
        save()
        raise
    finally:
        model.train(mode)
    save()
    return result


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of :func:`train`.

    Args:
        path: The file.

    Returns:
        "model", "optimizer", "average" (or None), "step", "losses" and "settings".

    Raises:
        CheckpointError: The file is absent, damaged, of an older format or not a checkpoint of a training.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # torch.load reports damage by many exception types
        raise CheckpointError(
            f"{path} is damaged or not a training checkpoint ({type(error).__name__}: {error}); "
            "delete it to start again"
        ) from error
    if isinstance(content, dict) and content.get("format") == _FORMAT_1:
        raise CheckpointError(
            f"{path} is of an older version of this package, whose prepared models had their parameters, and so the "
            "optimizer its state, in another order; finish that training with it, or delete the file to start again"
        )
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this training loop; choose another file")
    return content


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    result: TrainResult,
    settings: dict[str, Any],
) -> None:
    content = {
        "format": _FORMAT,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": result.average,
        "step": result.step,
        "losses": torch.tensor(result.losses, dtype=torch.float64),
        "settings": settings,
    }
    save_torch(content, path)


def _load(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    result: TrainResult,
    settings: dict[str, Any],
) -> None:
    content = read_checkpoint(path)
    if content["settings"] != settings:
        raise CheckpointError(
            f"{path} was made with {content['settings']}, not {settings}; use the same or delete the file"
        )
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit this model or optimizer: {error}") from error
    if result.average is not None:
        for name, value in content["average"].items():
            result.average[name].copy_(value)
    result.step = content["step"]
    result.losses = content["losses"].tolist()


def _schedule(step: int, steps: int, warmup: int) -> float:
    """The learning rate of a step as a fraction of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _copy(state: State) -> State:
    return {name: value.detach().clone() for name, value in state.items()}


@torch.no_grad()
def _average(average: State, state: State, decay: float) -> None:
    """Move the average towards the state; what is not a floating point number is copied."""
    floats = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in floats], [state[name].detach() for name in floats], 1 - decay)
    for name in state.keys() - set(floats):
        average[name].copy_(state[name])


def _autocast(model: nn.Module, dtype: torch.dtype | None) -> Any:
    if dtype is None:
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype)


@contextmanager
def _randomness_of_step(model: nn.Module, seed: int, step: int) -> Iterator[None]:
    """Make torch's generators, and SAM2Train's own, a function of seed and step inside the block."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    number = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
    settings: Any = getattr(model, "module", model)  # DistributedDataParallel keeps the model inside
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(number)
        if isinstance(getattr(settings, "rng", None), np.random.Generator):
            settings.rng = np.random.default_rng(number)
        yield


@contextmanager
def _naming_step(step: int) -> Iterator[None]:
    """Say at which step a training diverged."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"step {step}: {error}") from error


@contextmanager
def _interrupts_between_steps() -> Iterator[Callable[[], Any]]:
    """Hold Ctrl-C back while a step is under way, so that no state is half updated; a second one is not held
    back.

    Yields:
        A context manager to wrap what may be interrupted at once.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield nullcontext
        return
    pending = open_ = False

    def handler(signum: int, frame: Any) -> None:
        nonlocal pending
        if open_ or pending:
            raise KeyboardInterrupt
        pending = True

    @contextmanager
    def interruptible() -> Iterator[None]:
        nonlocal open_
        if pending:
            raise KeyboardInterrupt
        open_ = True
        try:
            yield
        finally:
            open_ = False

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield interruptible
    finally:
        signal.signal(signal.SIGINT, previous)
    if pending:
        raise KeyboardInterrupt
