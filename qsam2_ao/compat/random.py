"""torch's random operators for one thread: the global generator is every thread's."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_LOCK = threading.RLock()


def _new_lock() -> None:
    """In a child that was forked while another thread was in a block: that thread is not there to leave it."""
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


@contextmanager
def forked_generators(seed: int | None = None, devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """torch's global generators for what is in the block, by one thread at a time, and as they were afterwards.

    What is in the block must not wait for another thread that enters such a block.

    Args:
        seed: Where they start; None goes on from where they are.
        devices: GPUs whose generators are meant besides that of the CPU.

    Example:
        >>> with forked_generators(0):
        ...     a = torch.rand(2)
        >>> with forked_generators(0):
        ...     torch.equal(a, torch.rand(2))
        True
    """
    with _LOCK, torch.random.fork_rng(devices=list(devices)):
        if seed is not None:
            torch.manual_seed(seed)
        yield


class OwnGenerator(TorchDispatchMode):
    """What this thread draws inside the ``with`` block comes from a generator of its own, not the process's.

    The numbers are those of the global generator of the CPU in the same state.

    Args:
        seed: Of the generator; None starts it where the global one is.

    Example:
        >>> with OwnGenerator(0):
        ...     a = torch.nn.Linear(2, 2)
        >>> with OwnGenerator(0):
        ...     b = torch.nn.Linear(2, 2)
        >>> torch.equal(a.weight, b.weight)
        True
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self._generator = torch.Generator()
        if seed is None:
            self._generator.set_state(torch.get_rng_state())
        else:
            self._generator.manual_seed(seed)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to keep torch's compiler out of here it is imported, for a second, and nobody compiles in here."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operator, a random one with the generator."""
        kwargs = kwargs or {}
        drawing = _drawing(func)
        # In place on the meta device nothing is drawn. torch does that in Python, and imports its compiler for it.
        if drawing is not None and func._schema.name.endswith("_") and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs) if drawing is None else drawing(*args, **{**kwargs, "generator": self._generator})


@functools.cache
def _drawing(func: Any) -> Any:
    """The overload of an operator that takes a generator; None where nothing is drawn."""
    names = [argument.name for argument in func._schema.arguments]
    if "generator" in names:
        return func
    # aten.randn.generator for aten.randn.default, and so on: the same arguments but for that one.
    for name in func.overloadpacket.overloads():
        overload = getattr(func.overloadpacket, name)
        others = [argument.name for argument in overload._schema.arguments]
        if "generator" in others and sorted(others) == sorted([*names, "generator"]):
            return overload
    return None
