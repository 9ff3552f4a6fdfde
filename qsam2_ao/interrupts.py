"""Ctrl-C between two steps of a training or two frames of a video, never in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


@contextmanager
def interrupts_between_steps() -> Iterator[Callable[[], AbstractContextManager[Any]]]:
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
