"""Run the experiments of a plan in parallel processes, going on from what is finished."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from collections.abc import Collection, Container, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import torch

from ...errors import CheckpointError
from ...progress import tqdm
from ...reporting.environment import environment
from ...training.qat import Rates
from ..processes import end_with_parent
from .data import PROCEDURAL, BenchmarkData
from .experiment import Budget, Experiments
from .methods import METHODS, Method
from .plan import Search, Unit
from .store import ExperimentResult, ExperimentStore, experiment_key


def run_plan(
    units: Iterable[Unit],
    store: ExperimentStore,
    budget: Budget,
    data: BenchmarkData = PROCEDURAL,
    *,
    workers: int = 1,
    progress: bool = True,
) -> list[ExperimentResult]:
    """Compute what is missing and return all results.

    A unit is computed in one process with one thread, after the search for its learning rate. Every finished experiment
    is stored at once.

    Args:
        units: What to compute, in order.
        store: Where results are, and go.
        budget: What every method gets.
        data: What they are calibrated, trained and measured on.
        workers: Processes.
        progress: Show a progress bar with the time left.

    Returns:
        Everything in the store that was made with this budget.

    Raises:
        CheckpointError: The store holds results of another budget, of other data, of a method that has changed, or from
            before results said how their method was made.
        QSAM2Error: An experiment failed; the message says why. What is finished is kept.
        KeyboardInterrupt: Ctrl-C; what is finished is kept.
    """
    units = list(units)
    check_budget(store, budget, data)
    done = {experiment_key(experiment) for experiment in store.read() if experiment["kind"] == "cell"}
    found = _rates(store)
    searches = {unit.search for unit in units} - found.keys() - {None}
    queue = []
    with _processes(workers) as pool, tqdm(total=0, unit="experiment", disable=not progress) as bar:
        for unit in units:
            missing = tuple(s for s in unit.seeds if (unit.model, unit.method, unit.setting, s) not in done)
            bar.update(len(unit.seeds) - len(missing))
            if missing:
                queue.append(replace(unit, seeds=missing))
        if queue and any("recipe" not in experiment for experiment in store.read()):
            raise CheckpointError(
                f"{store.path} has results of an earlier revision, which do not say how they were made: new ones must "
                "not be averaged with them; give another folder (--output), or --report-only"
            )
        bar.total = sum(len(unit.seeds) for unit in units) + len(searches & {unit.search for unit in queue})
        running: dict[Future[int], Search | None] = {}
        while queue or running:
            while len(running) < workers and (job := _next(queue, found, running.values())):
                if isinstance(job, Search):
                    running[pool.submit(_search, job, store.path, budget, data)] = job
                else:
                    rates = None if job.search is None else found[job.search]
                    running[pool.submit(_run_unit, job, rates, store.path, budget, data)] = None
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                bar.update(future.result())
                if running.pop(future) is not None:
                    found = _rates(store)
    return store.read()


def _next(queue: list[Unit], found: Container[Search], running: Collection[Search | None]) -> Search | Unit | None:
    """The first unit that can run, taken out of the queue, or the search that it needs; None where all wait for one."""
    for unit in queue:
        if unit.search is None or unit.search in found:
            queue.remove(unit)
            return unit
        if unit.search not in running:
            return unit.search
    return None


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that start with their first job, and are killed where one fails or the user interrupts."""
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _start() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def _search(search: Search, path: Path, budget: Budget, data: BenchmarkData) -> int:
    found = Experiments(search.model, search.method, search.setting, budget, data).search()
    ExperimentStore(path).append({"kind": "learning rate", **found, **_made_with(search.method, budget, data)})
    return 1


def _run_unit(unit: Unit, rates: Rates | None, path: Path, budget: Budget, data: BenchmarkData) -> int:
    experiments = Experiments(unit.model, unit.method, unit.setting, budget, data)
    for seed in unit.seeds:
        experiment = experiments.run(seed, rates)
        ExperimentStore(path).append({"kind": "cell", **experiment, **_made_with(unit.method, budget, data)})
    return len(unit.seeds)


def _made_with(method: str, budget: Budget, data: BenchmarkData) -> dict[str, object]:
    machine = {name: value for name, value in environment().items() if name != "cores"}
    return {"budget": asdict(budget), "data": data.name, "recipe": asdict(METHODS[method]), "environment": machine}


#: What a method was before its record had the field.
_DEFAULTS = {field.name: field.default for field in fields(Method) if field.default is not MISSING}


def _rates(store: ExperimentStore) -> dict[Search, Rates]:
    return {
        Search(experiment["method"], experiment["model"], experiment["setting"]): Rates(**experiment["rates"])
        for experiment in store.read()
        if experiment["kind"] == "learning rate"
    }


def check_budget(store: ExperimentStore, budget: Budget, data: BenchmarkData) -> None:
    """Refuse results of another budget, other data, or a method that was another one when they were made.

    Args:
        store: What there is.
        budget: What every method is to get.
        data: What they are to be measured on.

    Raises:
        CheckpointError: The store holds such.
    """
    wanted = json.loads(json.dumps(asdict(budget)))
    for experiment in store.read():
        if experiment["budget"] != wanted or experiment.get("data", PROCEDURAL.name) != data.name:
            raise CheckpointError(
                f"{store.path} holds results of another budget or other data ({experiment['budget']}, now {wanted} on "
                f"{data.name} pictures); give another folder (--output), or the same options"
            )
        name, recipe = experiment["method"], experiment.get("recipe")  # older results do not say it
        now = json.loads(json.dumps(asdict(METHODS[name]))) if name in METHODS else {}
        if recipe is not None and (recipe := _DEFAULTS | recipe) != now:
            changed = ", ".join(key for key in recipe | now if recipe.get(key) != now.get(key))
            raise CheckpointError(
                f"{store.path} holds results of {name} as it was before ({changed}); give another folder (--output) "
                "or delete its lines"
            )
