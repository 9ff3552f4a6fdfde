"""Switches and checks of a quantizer that must not make the host wait for the accelerator at every call."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import NonFiniteError


class CachedFlags:
    """Python values of a module's flag buffers, read from the device only after they were written.

    torch.ao keeps its switches in buffers, and reading one is a device synchronisation. A buffer's version
    counter says whether it was written since the last read. Inside torch.compile's graphs the last value holds.

    Args:
        values: What the flags are when nothing was read yet.
    """

    def __init__(self, **values: bool) -> None:
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self._values = values

    def __getstate__(self) -> dict[str, bool]:
        return self._values  # a copy has buffers of its own

    def __setstate__(self, values: dict[str, bool]) -> None:
        self._seen, self._values = {}, dict(values)

    def read(self, name: str, buffer: Tensor) -> bool:
        """Value of the one-element flag ``buffer``.

        Args:
            name: Key of the flag.
            buffer: Its present buffer; moving a module to another device gives it a new one.
        """
        if torch.compiler.is_compiling() and name in self._values:
            return self._values[name]
        if buffer.is_inference():  # no version counter
            return bool(buffer.item())
        seen = self._seen.get(name)
        if seen is None or seen[0] is not buffer or seen[1] != buffer._version:
            self._values[name] = bool(buffer.item())
            self._seen[name] = (buffer, buffer._version)
        return self._values[name]

    def raise_flag(self, name: str, buffer: Tensor) -> None:
        """Set a flag; inside an operator of torch.compile's graphs no version counter tells of it.

        Args:
            name: Key of the flag.
            buffer: Its present buffer.
        """
        buffer.fill_(1)
        self._values[name] = True


class FiniteCheck:
    """Raises on non-finite statistics: at once on the CPU, within the next calls on an accelerator.

    On a CUDA device the verdict is copied to the host asynchronously and looked at by a later call; every eighth
    call asks for one. Statistics are running averages, so that a NaN stays in them and no call is missed.
    Nothing is checked inside torch.compile's graphs.
    """

    _PERIOD = 8

    def __init__(self) -> None:
        self._calls = 0
        self._pending: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, statistics: tuple[Tensor, ...], who: str) -> None:
        """Check ``statistics``.

        Args:
            statistics: Small tensors.
            who: Name of the module for the error.

        Raises:
            NonFiniteError: A statistic is NaN or infinite.
        """
        if torch.compiler.is_compiling():
            return
        # A sum is finite just when its terms are, short of an overflow, which is an error too.
        if not statistics[0].is_cuda:
            if not all(math.isfinite(value.sum().item()) for value in statistics):
                raise non_finite(who)
            return
        if self._pending is not None:
            verdict, event = self._pending
            if not event.query():
                return
            self._pending = None
            if not verdict:
                raise non_finite(who)
        self._calls += 1
        if self._calls % self._PERIOD == 1:
            finite = torch.isfinite(torch.stack([value.sum() for value in statistics]).sum())
            verdict = torch.empty((), dtype=torch.bool, pin_memory=True)
            verdict.copy_(finite, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(finite.device))  # which is not of the current device, perhaps
            self._pending = (verdict, event)


def non_finite(who: str) -> NonFiniteError:
    """The error that names the quantizer whose input is not finite."""
    return NonFiniteError(
        f"{who}: the tensor to quantize holds NaN, infinite or overflowing values; check the data, the "
        "learning rate and the loss scale of the step before"
    )
