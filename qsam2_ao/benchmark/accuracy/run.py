"""Run the experiments of a plan in parallel processes, going on from what is finished."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError
from ...progress import tqdm
from ...training.qat import Rates
from .experiment import Budget, Experiments
from .plan import SEARCH_SETTING, Unit
from .store import ExperimentResult, ExperimentStore, experiment_key


def run_plan(
    units: Iterable[Unit], store: ExperimentStore, budget: Budget, *, workers: int = 1, progress: bool = True
) -> list[ExperimentResult]:
    """Compute what is missing and return all results.

    First the learning rates that the units need, then the units, each in one process with one thread. Every finished
    experiment is stored at once.

    Args:
        units: What to compute, in order.
        store: Where results are, and go.
        budget: What every method gets.
        workers: Processes.
        progress: Show a progress bar with the time left.

    Returns:
        Everything in the store that was made with this budget.

    Raises:
        CheckpointError: The store holds results of another budget.
        QSAM2Error: An experiment failed; the message says why. What is finished is kept.
        KeyboardInterrupt: Ctrl-C; what is finished is kept.
    """
    units = list(units)
    _check_budget(store, budget)
    rates = _rates(store)
    searched = [name for name in dict.fromkeys(unit.searched for unit in units) if name and name not in rates]
    total = len(searched) + sum(len(u.seeds) for u in units)
    with _processes(workers) as pool, tqdm(total=total, unit="experiment", disable=not progress) as bar:
        bar.set_description("learning rates")
        _in_parallel(pool, _search, [(name, budget, store.path) for name in searched], bar)
        done = {experiment_key(experiment) for experiment in store.read() if experiment["kind"] == "cell"}
        rates = _rates(store)
        jobs = []
        for unit in units:
            missing = tuple(s for s in unit.seeds if (unit.model, unit.method, unit.setting, s) not in done)
            bar.update(len(unit.seeds) - len(missing))
            if missing:
                chosen = None if unit.searched is None else rates[unit.searched]
                jobs.append((Unit(unit.model, unit.method, unit.setting, missing), chosen, budget, store.path))
        bar.set_description("experiments")
        _in_parallel(pool, _run_unit, jobs, bar)
    return store.read()


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start with their first job, and are killed where one fails or the user interrupts."""
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _in_parallel(
    pool: ProcessPoolExecutor, function: Callable[..., int], jobs: Iterable[tuple[Any, ...]], bar: Any
) -> None:
    futures: list[Future[int]] = [pool.submit(function, *job) for job in jobs]
    for future in as_completed(futures):
        bar.update(future.result())


def _one_thread() -> None:
    torch.set_num_threads(1)


def _search(method: str, budget: Budget, path: Path) -> int:
    found = Experiments("heavy-tailed", method, SEARCH_SETTING, budget).search()
    ExperimentStore(path).append({"kind": "learning rate", **found, "budget": asdict(budget)})
    return 1


def _run_unit(unit: Unit, rates: Rates | None, budget: Budget, path: Path) -> int:
    experiments = Experiments(unit.model, unit.method, unit.setting, budget)
    for seed in unit.seeds:
        ExperimentStore(path).append({"kind": "cell", **experiments.run(seed, rates), "budget": asdict(budget)})
    return len(unit.seeds)


def _rates(store: ExperimentStore) -> dict[str, Rates]:
    return {
        experiment["method"]: Rates(**experiment["rates"])
        for experiment in store.read()
        if experiment["kind"] == "learning rate"
    }


def _check_budget(store: ExperimentStore, budget: Budget) -> None:
    wanted = json.loads(json.dumps(asdict(budget)))
    for experiment in store.read():
        if experiment["budget"] != wanted:
            raise CheckpointError(
                f"{store.path} holds results of another budget ({experiment['budget']}, now {wanted}); choose another "
                "file, or the same options"
            )
