"""Ctrl-C, and what schedulers send before the end, between two steps of a training or two frames of a video."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

INTERRUPTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""The signals that end a training with everything saved."""


@contextmanager
def interrupts_between_steps(
    any_rank: Callable[[bool], bool] | None = None,
) -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """Hold Ctrl-C back while a step is under way, so that no state is half updated; a second one is not held back.

    SIGTERM and, where there is one, SIGUSR1 are treated alike: schedulers such as SLURM send them before the end.

    Args:
        any_rank: For data-parallel ranks, which stop at the same step: from whether this one is to stop to whether any
            is. It is asked at the beginning of each wrapped block, of which all ranks have the same, and nothing is
            interrupted elsewhere.

    Yields:
        A context manager to wrap what may be interrupted at once.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield nullcontext
        return
    pending = open_ = False

    def handler(signum: int, frame: FrameType | None) -> None:
        nonlocal pending
        if open_ or pending:
            raise KeyboardInterrupt
        pending = True

    @contextmanager
    def interruptible() -> Iterator[None]:
        nonlocal open_
        if pending if any_rank is None else any_rank(pending):
            raise KeyboardInterrupt
        open_ = any_rank is None
        try:
            yield
        finally:
            open_ = False

    previous = {number: signal.signal(number, handler) for number in INTERRUPTS}
    try:
        yield interruptible
    finally:
        for number, handled in previous.items():
            signal.signal(number, signal.SIG_DFL if handled is None else handled)
    if pending:
        raise KeyboardInterrupt
