from __future__ import annotations

import importlib
import importlib.resources
import inspect
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from threads import at_once

from qsam2_ao.compat import arrange_repairs
from qsam2_ao.compat.hook import RepairingFinder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "foreign_package").mkdir()
    (tmp_path / "foreign_package" / "__init__.py").write_text("import events\nevents.seen.append('code')\n")
    (tmp_path / "foreign_package" / "data.txt").write_text("data")
    (tmp_path / "events.py").write_text("seen = []\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield "foreign_package"
    for name in ("foreign_package", "events"):
        sys.modules.pop(name, None)


def test_the_code_runs_once_inside_the_repair(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def repair() -> Iterator[None]:
        events = importlib.import_module("events")
        events.seen.append("before")
        yield
        events.seen.append("after")

    monkeypatch.setattr(sys, "meta_path", [RepairingFinder({package: repair}), *sys.meta_path])
    modules = at_once(*[lambda: importlib.import_module(package)] * 4)
    assert len(set(modules)) == 1
    assert importlib.import_module("events").seen == ["before", "code", "after"]
    # Sources and data are found as ever.
    assert "events.seen" in inspect.getsource(modules[0])
    assert (importlib.resources.files(package) / "data.txt").read_text() == "data"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("foreign_package.none")


def test_a_repair_that_is_absent_or_a_package_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [RepairingFinder({"no_such_package": lambda: 1 / 0}), *sys.meta_path])
    assert importlib.util.find_spec("no_such_package") is None
    assert importlib.util.find_spec("json") is not None


def test_beside_another_finder_that_asks_all_others(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asking(MetaPathFinder):
        def find_spec(self, *wanted: Any) -> ModuleSpec | None:
            others = (finder.find_spec(*wanted) for finder in sys.meta_path if finder is not self)
            return next((spec for spec in others if spec is not None), None)

    repaired = []

    @contextmanager
    def repair() -> Iterator[None]:
        repaired.append(package)
        yield

    ours = RepairingFinder({package: repair})
    for finders in ([ours, Asking()], [Asking(), ours]):
        with monkeypatch.context() as patch:
            # Not those of tools that measure tests: another one that asks all others and this one would never end.
            pythons = [finder for finder in sys.meta_path if isinstance(finder, type)]
            patch.setattr(sys, "meta_path", [*finders, *pythons])
            importlib.import_module(package)
        sys.modules.pop(package)
    assert repaired == [package] * 2


def test_arranging_twice_is_arranging_once() -> None:
    before = list(sys.meta_path)
    arrange_repairs()
    assert sys.meta_path == before


_ORDERS = {
    "after torch and sam2": "import torch, sam2.build_sam, qsam2_ao; from sam2.sam2_image_predictor import *",
    "by a room alone": "import qsam2_ao.errors; from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator",
}


_WORKS = """
import torch, qsam2_ao
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torchvision.ops import nms
assert not hasattr(SAM2ImagePredictor.__init__, "_qsam2_original"), "the package alone changed sam2"
qsam2_ao.build_embedded()
assert SAM2ImagePredictor.__init__._qsam2_original
assert len(nms(torch.zeros(2, 4), torch.ones(2), 0.5)) == 2
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", _ORDERS)
def test_sam2s_predictors_import_after_the_package(order: str) -> None:
    done = subprocess.run([sys.executable, "-c", _ORDERS[order] + _WORKS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


_AFTER_A_MODEL = """
import qsam2_ao
qsam2_ao.build_embedded()
from sam2.sam2_image_predictor import SAM2ImagePredictor
assert SAM2ImagePredictor.__init__._qsam2_original
"""


def test_the_image_predictor_is_adapted_when_it_is_imported_after_a_model_was_made() -> None:
    done = subprocess.run([sys.executable, "-c", _AFTER_A_MODEL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
