"""On how many threads torch works, that its results don't depend on which is faster, and modules that threads share."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

#: A model with fewer parameters that reads images of at most this side has no work for two threads.
SMALL_PARAMETERS, SMALL_SIDE = 8_000_000, 256


@contextmanager
def one_thread_if_small(model: object) -> Iterator[None]:
    """Run torch's operations on one thread inside the block if the model is too small for more.

    Such a model gains a fourth from a second thread where the machine is idle and loses tenfold where it is busy: each
    of its thousands of parallel regions waits for a thread that the system has put aside. And on one thread the
    results are the same bits whatever the number of threads was. It is the calling thread's setting that changes, and
    the initial one of threads that start meanwhile.

    Args:
        model: Any model; a SAM2's ``image_size`` counts too. What is no ``nn.Module`` (files exported for another
            runtime) does not run on torch's threads.

    Example:
        >>> with one_thread_if_small(model):
        ...     y = model.forward_image(x)
    """
    before = torch.get_num_threads()
    side = getattr(getattr(model, "module", model), "image_size", 0)  # DistributedDataParallel keeps it inside
    small = (
        isinstance(model, nn.Module)
        and side <= SMALL_SIDE
        and sum(parameter.numel() for parameter in model.parameters()) < SMALL_PARAMETERS
    )
    if before == 1 or not small:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def survive_forks() -> None:
    """Let torch's operations run on one thread in processes that this one forks from now on.

    The threads of OpenMP don't come along into a fork, and an operation on several of them would wait for those for
    ever. On one thread it needs none; more than that have processes that are spawned. It is arranged once, where a
    model is loaded.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class _Deterministic:
    """torch's process-wide switch, on while any thread needs it."""

    lock = threading.Lock()
    users = 0


@contextmanager
def deterministic_on_cpu(model: nn.Module) -> Iterator[None]:
    """Let operations on several CPU threads add up in a fixed order inside the block.

    Without, the backward of ``x[:, ids]``, which SAM2's training takes for each object, adds rows in the order in
    which threads arrive. The switch is torch's for the whole process: it stays on until the last block ends. Nothing
    is switched where the model is on a GPU, where the user has switched it on already, or where one thread works.

    Args:
        model: Its parameters' devices decide.

    Example:
        >>> with deterministic_on_cpu(model):
        ...     model.forward_image(x)["vision_features"].sum().backward()
    """
    state = _Deterministic
    with state.lock:
        needed = (
            all(parameter.device.type == "cpu" for parameter in model.parameters())
            and torch.get_num_threads() > 1
            and (state.users > 0 or not torch.are_deterministic_algorithms_enabled())
        )
        if needed:
            state.users += 1
            if state.users == 1:
                torch.set_deterministic_debug_mode("warn")
    try:
        yield
    finally:
        if needed:
            with state.lock:
                state.users -= 1
                if state.users == 0:
                    torch.set_deterministic_debug_mode("default")


@dataclass
class _Found:
    """What an attribute was before the first of the blocks that have changed it."""

    value: Any
    blocks: int = 0


_FOUND: WeakKeyDictionary[nn.Module, dict[str, _Found]] = WeakKeyDictionary()
_FOUND_LOCK = threading.Lock()


@contextmanager
def attributes_set(changes: Iterable[tuple[nn.Module, str, Any]]) -> Iterator[None]:
    """Give attributes of modules other values inside the ``with`` block.

    Of threads that share modules, the first finds what the values were and the last restores them.

    Args:
        changes: Modules, names of attributes that they have, and values: the same in all blocks that overlap.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> with attributes_set([(layer, "training", False)]):
        ...     layer.training
        False
    """
    changes = list(changes)
    with _FOUND_LOCK:
        for module, name, value in changes:
            _FOUND.setdefault(module, {}).setdefault(name, _Found(getattr(module, name))).blocks += 1
            setattr(module, name, value)
    try:
        yield
    finally:
        with _FOUND_LOCK:
            for module, name, _ in changes:
                found = _FOUND[module][name]
                found.blocks -= 1
                if not found.blocks:
                    setattr(module, name, found.value)
                    del _FOUND[module][name]
