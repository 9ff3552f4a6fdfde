"""The accuracy benchmark as a whole: what is missing is computed, and results, report and pictures are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...files import atomic_write
from ...reporting.environment import environment
from ...reporting.figures import has_data, save_figure
from ...reporting.notes import note
from .data import PROCEDURAL, BenchmarkData
from .experiment import Budget
from .illustrate import illustrate_training, illustrate_weights, outlying_model
from .plan import MAIN_MODELS, REAL_MODELS, Unit
from .plots import BY_BITS, accuracy_against_bits, accuracy_against_bytes
from .report import markdown
from .results import Results
from .run import check_budget, run_plan
from .store import ExperimentStore


def publish(
    units: Sequence[Unit],
    folder: Path,
    budget: Budget,
    data: BenchmarkData = PROCEDURAL,
    *,
    command: str,
    workers: int = 1,
    report_only: bool = False,
) -> Results:
    """Run experiments and report on all that the folder has.

    Finished experiments are kept in ``accuracy_cells.jsonl``, and a later run goes on from there.

    Args:
        units: What to run, in order.
        folder: Where ``accuracy.json``, ``accuracy.md`` and the pictures go.
        budget: What every method gets.
        data: What they are calibrated, trained and measured on.
        command: The command line with this budget, for the report.
        workers: Processes of one thread each.
        report_only: Run nothing.

    Returns:
        All results in the folder.

    Raises:
        CheckpointError: The folder holds results of another budget or other data.
        QSAM2Error: An experiment failed, or a file cannot be written.

    Example:
        >>> publish(quick_plan(), Path("outputs/quick"), QUICK, command="in Python")  # doctest: +SKIP
    """
    store = ExperimentStore(folder / "accuracy_cells.jsonl")
    if report_only:
        check_budget(store, budget, data)
    else:
        run_plan(units, store, budget, data, workers=workers)
    results = Results(store.read())
    with atomic_write(folder / "accuracy.json") as temporary:
        temporary.write_text(json.dumps(results.records(), indent=1))
    note("drawing")
    measured = {experiment["model"] for experiment in results.all_experiments}
    models = [m for m in (MAIN_MODELS if data.name == PROCEDURAL.name else REAL_MODELS) if m in measured]
    plots: dict[str, Path] = {}
    if models:
        with_bits = {
            experiment["model"]
            for experiment in results.all_experiments
            if experiment["setting"].removeprefix("PTQ ") in BY_BITS.values()
        }
        if by_bits := [model for model in models if model in with_bits]:
            figure = accuracy_against_bits(results, by_bits)
            plots["J&F against bits"] = save_figure(figure, folder / "accuracy_bits.png")
        against_bytes = accuracy_against_bytes(results, models)
        if has_data(against_bytes):
            plots["J&F against bytes"] = save_figure(against_bytes, folder / "accuracy_bytes.png")
    weights, shapes = illustrate_weights(folder, budget, data)
    plots["A weight before and after VRC"] = weights
    trained = illustrate_training(folder, budget, results, data)
    titles = {"ranges": "LSC's ranges over training, W2A4", "masks": f"Masks at W2A4, {outlying_model(data)}"}
    plots |= {titles[name]: path for name, path in trained.items()}
    files = {caption: path.name for caption, path in plots.items()}
    with atomic_write(folder / "accuracy.md") as temporary:
        temporary.write_text(markdown(results, budget, environment(), command, data, shapes, files))
    return results
