"""Tracking on a machine that does other things too: beside busy processes, and several models at once.

What is timed is what ``qsam2 evaluate`` does on videos once its modules are imported: the model is loaded, tracks, and
the masks are scored. With ``qsam2``'s own settings of threads, unless a column says otherwise.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError
from typing import Any

import torch

from ...checkpoint import load_qsam2
from ...data.procedural import generate_split
from ...errors import QSAM2Error
from ...evaluation.video import evaluate_video
from ...models.embedded import load_embedded
from ...openmp import wait_briefly
from ...progress import tqdm
from ..processes import end_with_parent
from .footprint import embedded_file
from .workload import InferenceWorkload

EMBEDDED = "embedded"
_TARGETS = {"float": None, "packed": "packed", "int8": "auto", "int8, torch's own waiting": "auto"}
METHODS = tuple(_TARGETS)
_LONG_WAITING = METHODS[-1]
_START_SECONDS = 600.0
#: Works without end, but not beyond the benchmark.
_LOOP = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Situation:
    """What else the machine does.

    Attributes:
        name: As the tables call it.
        loops: Processes that keep a core busy each.
        copies: Processes that do the same as the one measured, that one included.
        threads: Of torch; None for as many as it takes by itself.
    """

    name: str
    loops: int = 0
    copies: int = 1
    threads: int | None = None


QUIET, ONE_THREAD = "quiet", "quiet, one thread"


def situations(cores: int) -> tuple[Situation, ...]:
    """Alone; beside one or two busy processes, or as many as cores or twice; and one more model than cores at once."""
    return (
        Situation(QUIET),
        Situation(ONE_THREAD, threads=1),
        *(Situation(beside(loops), loops=loops) for loops in sorted({1, 2, cores, 2 * cores})),
        Situation(together(cores), copies=cores + 1),
    )


def beside(loops: int) -> str:
    """The name of the situation."""
    return f"beside {loops} busy loop{'s' if loops > 1 else ''}"


def together(cores: int) -> str:
    """The name of the situation."""
    return f"{cores + 1} at once"


def busy_machine(
    workload: InferenceWorkload, cores: int, *, methods: Sequence[str] = METHODS, rounds: int = 3, progress: bool = True
) -> list[dict[str, Any]]:
    """Time each method in every situation, in turn, round after round.

    Args:
        workload: The model, "embedded" or an official one, and the folder of files; its threads do not matter.
        cores: Of the machine.
        methods: Of ``METHODS``.
        rounds: How often.
        progress: Whether to show a bar.

    Returns:
        Records {model, size, cores, method, situation, seconds, load_seconds, rounds}: medians until the last
        process is through, and of its slowest loading.

    Raises:
        QSAM2Error: A process was killed or did not start.
    """
    if workload.model == EMBEDDED:
        embedded_file(workload)
    else:
        workload.packed("w4a8")
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    todo = [(method, situation) for _ in range(rounds) for method in methods for situation in situations(cores)]
    for method, situation in tqdm(todo, desc=f"{workload.model}, busy machine", unit="run", disable=not progress):
        found.setdefault((method, situation.name), []).append(_measure(workload, method, situation))
    return [
        {
            "model": workload.model,
            "size": workload.size,
            "cores": cores,
            "method": method,
            "situation": situation,
            "seconds": round(statistics.median(total for total, _ in seconds), 3),
            "load_seconds": round(statistics.median(load for _, load in seconds), 3),
            "rounds": rounds,
        }
        for (method, situation), seconds in found.items()
    ]


def _measure(workload: InferenceWorkload, method: str, situation: Situation) -> tuple[float, float]:
    start = _spawn.Barrier(situation.copies + 1)
    with _settings(method), ProcessPoolExecutor(situation.copies, _spawn, _take, (start,)) as pool:
        works = [pool.submit(_work, workload, method, situation.threads) for _ in range(situation.copies)]
        while start.n_waiting < situation.copies and not any(work.done() for work in works):
            time.sleep(0.05)
        with _busy_loops(situation.loops):
            try:
                start.wait(_START_SECONDS if not any(work.done() for work in works) else 0.01)
            except BrokenBarrierError:
                _results(works)
                raise
            began = time.perf_counter()
            loads = _results(works)
            return time.perf_counter() - began, max(loads)


def _results(works: Sequence[Future[float]]) -> list[float]:
    try:
        return [work.result() for work in works]
    except BrokenProcessPool as error:
        raise QSAM2Error("a process that measured was killed, most likely because memory ran out") from error


@contextlib.contextmanager
def _settings(method: str) -> Iterator[None]:
    """What the processes started inside the block find as OpenMP's settings."""
    before = dict(os.environ)
    if method != _LONG_WAITING:
        wait_briefly()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _busy_loops(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", _LOOP]) for _ in range(count)]
    try:
        if loops:
            time.sleep(0.5)  # until each has started
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


_start: Barrier | None = None


def _take(start: Barrier) -> None:
    """Keep the barrier of the process's work, which cannot be sent with that."""
    global _start
    _start = start
    end_with_parent()


def _work(workload: InferenceWorkload, method: str, threads: int | None) -> float:
    """Load and track; seconds that loading took."""
    if threads is not None:
        torch.set_num_threads(threads)
    videos, frames = (4, 16) if workload.model == EMBEDDED else (1, 4)
    sequences = list(generate_split("test", videos, num_frames=frames))
    evaluate_video(load_embedded(), generate_split("val", 1, num_frames=3))  # imports and allocates
    assert _start is not None, "the pool's initializer keeps it"
    _start.wait(_START_SECONDS)
    began = time.perf_counter()
    target = _TARGETS[method]
    if target is None:
        model = load_embedded() if workload.model == EMBEDDED else workload.build()
    else:
        model = load_qsam2(
            embedded_file(workload) if workload.model == EMBEDDED else workload.packed("w4a8"), target=target
        )
    loaded = time.perf_counter()
    evaluate_video(model, sequences)
    return loaded - began
