"""Running a function in several threads that interrupt each other as often as they can."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def _switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """What the functions return, each in a thread of its own; they start together, and an error is raised."""
    start = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        start.wait()
        return function()

    with _switching(), ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, functions))


def during(work: Callable[[], Any], other: Callable[[], Any]) -> Any:
    """What ``work`` returns in a thread, while this one calls ``other`` again and again; an error is raised."""
    with _switching(), ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        while not done.done():
            other()
        return done.result()
