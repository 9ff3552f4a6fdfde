"""What belongs to one step of a training: its rate, its randomness, its precision, its share in the average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..compat.random import forked_generators
from ..errors import NonFiniteError
from ..ranks import bare, rank
from .resume import State


def warmup_and_cosine(step: int, steps: int, warmup: int) -> float:
    """The learning rate of a step as a fraction of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def copy_state(state: State) -> State:
    """The same values in memory of their own."""
    return {name: value.detach().clone() for name, value in state.items()}


@torch.no_grad()
def move_average(average: State, state: State, decay: float, copied: Set[str] = frozenset()) -> None:
    """Move the average towards the state; what is not a floating point number is copied, and so are those named."""
    floats = [name for name, value in state.items() if value.is_floating_point() and name not in copied]
    torch._foreach_lerp_([average[name] for name in floats], [state[name].detach() for name in floats], 1 - decay)
    for name in state.keys() - set(floats):
        average[name] = state[name].detach().clone()


def autocast_to(model: nn.Module, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Run the forward pass in this dtype inside the block; None leaves it as it is."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype)


@contextmanager
def randomness_of_step(model: nn.Module, seed: int, step: int, part: int = 0) -> Iterator[None]:
    """Make torch's generators, and SAM2Train's own, a function of seed and step inside the block.

    SAM2Train's own decides about a whole batch (clicks or masks, which frames are corrected): it is the same on all
    data-parallel ranks and for all parts of a step. What torch draws (dropout) differs.

    Args:
        model: The model, perhaps inside of DistributedDataParallel.
        seed: Of the training.
        step: Its step.
        part: Number of the part of an accumulated gradient.
    """
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    number = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
    settings: Any = bare(model)
    place = (rank() if isinstance(model, DistributedDataParallel) else 0, part)
    own = number if place == (0, 0) else int(np.random.SeedSequence((seed, step, *place)).generate_state(1)[0])
    with forked_generators(own, devices):
        if isinstance(getattr(settings, "rng", None), np.random.Generator):
            settings.rng = np.random.default_rng(number)
        yield


@contextmanager
def naming_step(step: int) -> Iterator[None]:
    """Say at which step a training diverged."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"step {step}: {error}") from error
