"""Finished experiments as a table: by model, method and setting, and as flat records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from .methods import FLOAT
from .statistics import Difference, Spread, paired_bootstrap, spread
from .store import ExperimentResult, experiment_key


class Results:
    """What a report reads.

    Args:
        results: Everything that a :class:`~qsam2_ao.benchmark.accuracy.store.ExperimentStore` holds.
    """

    def __init__(self, results: Iterable[ExperimentResult]) -> None:
        results = list(results)
        # A run that was cut off may have left an experiment that the next one did again: the last one counts.
        searches = {
            (result["method"], result["model"], result["setting"]): result
            for result in results
            if result["kind"] == "learning rate"
        }
        experiments = {experiment_key(result): result for result in results if result["kind"] == "cell"}
        self.searches, self.all_experiments = list(searches.values()), list(experiments.values())
        self._experiments: defaultdict[tuple[str, str, str], list[ExperimentResult]] = defaultdict(list)
        for experiment in self.all_experiments:
            self._experiments[experiment["model"], experiment["method"], experiment["setting"]].append(experiment)

    def experiments(self, model: str, method: str, setting: str) -> list[ExperimentResult]:
        """One experiment per finished seed. The float model has the same figures at every setting."""
        return self._experiments.get((model, method, FLOAT if method == FLOAT else setting), [])

    def has(self, model: str, method: str, setting: str) -> bool:
        """Whether any seed is finished."""
        return bool(self.experiments(model, method, setting))

    def spread(self, model: str, method: str, setting: str, metric: str) -> Spread | None:
        """The metric over the finished seeds; None where there are none, or it was not measured."""
        values = [e["metrics"][metric] for e in self.experiments(model, method, setting) if metric in e["metrics"]]
        return spread(values) if values else None

    def difference(
        self, model: str, ours: str, theirs: str, setting: str, metric: str, their_setting: str | None = None
    ) -> Difference | None:
        """How much better ``ours`` is than ``theirs``, at the same setting by default; None where one is missing."""
        experiments = self.experiments(model, ours, setting), self.experiments(model, theirs, their_setting or setting)
        measured = all(found and metric in found[0]["metrics"] for found in experiments)
        return paired_bootstrap(*experiments, metric) if measured else None

    def best(self, model: str, setting: str, metric: str, methods: Iterable[str]) -> str | None:
        """The method with the highest mean; None where none is finished."""
        means = {
            name: found.mean for name in methods if (found := self.spread(model, name, setting, metric)) is not None
        }
        return max(means, key=lambda name: means[name]) if means else None

    def records(self) -> list[dict[str, Any]]:
        """One record per model, method, setting, metric and seed."""
        return [
            {key: experiment[key] for key in ("model", "method", "setting")}
            | {"metric": metric, "seed": experiment["seed"], "value": round(value, 3)}
            for experiment in self.all_experiments
            for metric, value in experiment["metrics"].items()
        ]
