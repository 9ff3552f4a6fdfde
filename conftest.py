"""Docstring examples: each runs in an empty folder, with the objects and files that it mentions."""

from __future__ import annotations

import doctest
import gc
import importlib.util
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # must be set before anything imports triton

import qsam2_ao  # noqa: F401 - before any test imports sam2's predictors, which may need its repairs

#: How many threads torch has where no test has set another number.
THREADS = torch.get_num_threads()

#: Modules that have moved warn when they are imported.
collect_ignore = [
    f"qsam2_ao/{path}.py"
    for path in (
        "backend_config",
        "fake_quant",
        "qconfig",
        "benchmark/accuracy/cell",
        "calibration/scaling",
        "evaluation/state",
        "lowering/activation",
    )
]
if importlib.util.find_spec("transformers") is None:
    collect_ignore.append("qsam2_ao/deploy/transformers_files.py")

#: Examples that quantize a whole model, or wait for torch to export one.
SLOW_EXAMPLES = {
    "qsam2_ao",
    "qsam2_ao.benchmark.training.trainee.Trainee",
    "qsam2_ao.calibration.calibrate.calibrate_qsam2",
    "qsam2_ao.calibration.equalize.equalize_qsam2",
    "qsam2_ao.convert.convert_qsam2",
    "qsam2_ao.prepare.calibrate_activations",
    "qsam2_ao.prepare.prepare_qsam2",
    "qsam2_ao.pt2e.modes.eval_exported",
    "qsam2_ao.recipe.presets.with_first_and_last",
    "qsam2_ao.sensitivity.assign.assign_bits",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with one at the end."""
    for item in items:
        if isinstance(item, pytest.DoctestItem) and item.name in SLOW_EXAMPLES:
            item.add_marker("slow")
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """What is imported by now stays: collecting garbage need not look at it again, behind each file and in between."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test draws the same numbers wherever it runs, and whatever ran before it in the same process."""
    torch.set_num_threads(THREADS)  # a thread's own setting is that of all threads that start later
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def _example_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(autouse=True)
def _example_world(request: pytest.FixtureRequest) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("_names_and_files")


@pytest.fixture
def _names_and_files(
    request: pytest.FixtureRequest,
    doctest_namespace: dict[str, Any],
    _example_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from docstring_world import FILES, NEED_KERNELS, objects, world

    from qsam2_ao.native import why_no_kernels

    test = request.node.dtest
    examples = [example for example in test.examples if doctest.SKIP not in example.options]
    text = "".join(example.source for example in examples)
    if any(name in text for name in NEED_KERNELS) and (reason := why_no_kernels()) is not None:
        pytest.skip(reason)
    doctest_namespace.clear()
    doctest_namespace.update(world(text, test.globs))
    monkeypatch.chdir(tmp_path)
    for name, write in FILES.items():
        if name in text:
            if not (_example_files / name).exists():
                write(_example_files / name, objects())
            (tmp_path / name).symlink_to(_example_files / name)
