"""Measurements that need a process of their own."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..errors import QSAM2Error

Result = TypeVar("Result")


def alone(function: Callable[..., Result], *arguments: Any, environment: Mapping[str, str] | None = None) -> Result:
    """``function(*arguments)`` in a new process, so that its peak memory is its own.

    Args:
        function: What to call; pickled, as the arguments are.
        *arguments: Its arguments.
        environment: Variables that the process starts with, beside those of this one.

    Raises:
        QSAM2Error: The process was killed.
    """
    with (
        _variables(environment or {}),
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent) as pool,
    ):
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            name = getattr(function, "__name__", function)
            raise QSAM2Error(
                f"the process that measured ({name}) was killed, most likely because memory ran out; measure smaller "
                "models or sizes, or fewer methods. What was finished is kept"
            ) from error


def end_with_parent() -> None:
    """In a process that multiprocessing started: end it as soon as the one that started it is gone.

    A parent that is killed cannot tell its children, which would go on to the end of their jobs and store what they
    find beside what a benchmark that was started anew finds.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with parent").start()


@contextmanager
def _variables(added: Mapping[str, str]) -> Iterator[None]:
    """What processes that are started inside the block find in their environment."""
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def peak_bytes() -> int:
    """The most memory that this process has ever had resident.

    Raises:
        QSAM2Error: On Windows.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        if sys.platform == "win32":
            raise QSAM2Error("the peak memory of a process is read on Linux and macOS only") from None
        import resource  # which Windows lacks

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    # Not ru_maxrss, which on Linux starts with the peak of the process that started this one.
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
