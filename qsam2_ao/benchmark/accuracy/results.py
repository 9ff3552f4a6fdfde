"""Finished cells as a table: by model, method and setting, and as flat records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from .methods import FLOAT, METHODS
from .statistics import Difference, Spread, paired_bootstrap, spread
from .store import Cell, cell_key


class Results:
    """What a report reads.

    Args:
        results: Everything that a :class:`~qsam2_ao.benchmark.accuracy.store.CellStore` holds.
    """

    def __init__(self, results: Iterable[Cell]) -> None:
        results = list(results)
        # A run that was cut off may have left a cell that the next one did again: the last one counts.
        searches = {result["method"]: result for result in results if result["kind"] == "learning rate"}
        cells = {cell_key(result): result for result in results if result["kind"] == "cell"}
        self.searches, self.all_cells = list(searches.values()), list(cells.values())
        self._cells: defaultdict[tuple[str, str, str], list[Cell]] = defaultdict(list)
        for cell in self.all_cells:
            self._cells[cell["model"], cell["method"], cell["setting"]].append(cell)

    def cells(self, model: str, method: str, setting: str) -> list[Cell]:
        """One cell per finished seed. The float model has the same figures at every setting."""
        return self._cells.get((model, method, FLOAT if method == FLOAT else setting), [])

    def has(self, model: str, method: str, setting: str) -> bool:
        """Whether any seed is finished."""
        return bool(self.cells(model, method, setting))

    def spread(self, model: str, method: str, setting: str, metric: str) -> Spread | None:
        """The metric over the finished seeds; None where there are none."""
        cells = self.cells(model, method, setting)
        return spread([cell["metrics"][metric] for cell in cells]) if cells else None

    def difference(self, model: str, ours: str, theirs: str, setting: str, metric: str) -> Difference | None:
        """How much better ``ours`` is than ``theirs``; None where one is missing."""
        cells = self.cells(model, ours, setting), self.cells(model, theirs, setting)
        return paired_bootstrap(*cells, metric) if all(cells) else None

    def best(self, model: str, setting: str, metric: str, group: str) -> str | None:
        """The method of a group with the highest mean; None where none is finished."""
        means = {
            name: found.mean
            for name, method in METHODS.items()
            if method.group == group and (found := self.spread(model, name, setting, metric)) is not None
        }
        return max(means, key=lambda name: means[name]) if means else None

    def records(self) -> list[dict[str, Any]]:
        """One record per model, method, setting, metric and seed."""
        return [
            {key: cell[key] for key in ("model", "method", "setting")}
            | {"metric": metric, "seed": cell["seed"], "value": round(value, 3)}
            for cell in self.all_cells
            for metric, value in cell["metrics"].items()
        ]
