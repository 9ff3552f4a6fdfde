from __future__ import annotations

import pytest

from qsam2_ao.benchmark.accuracy.store import ExperimentStore
from qsam2_ao.errors import CheckpointError, QSAM2Error


def test_results_come_back_in_order(tmp_path):
    store = ExperimentStore(tmp_path / "new" / "cells.jsonl")
    assert store.read() == []
    for k in range(3):
        store.append({"k": k, "name": "m ± s"})
    assert [result["k"] for result in ExperimentStore(store.path).read()] == [0, 1, 2]


def test_a_line_that_a_crash_cut_off_is_dropped_and_not_glued(tmp_path):
    store = ExperimentStore(tmp_path / "cells.jsonl")
    store.append({"k": 0})
    with open(store.path, "a") as file:
        file.write('{"k": 1, "va')
    assert [result["k"] for result in store.read()] == [0]
    store.append({"k": 2})
    assert [result["k"] for result in store.read()] == [0, 2]
    store.path.write_text(store.path.read_text().rstrip())  # whole, without the end of its line
    store.append({"k": 3})
    assert [result["k"] for result in store.read()] == [0, 2, 3]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_text('{"k": 0}\nnonsense\n{"k": 2}\n')
    with pytest.raises(CheckpointError, match="line 2"):
        ExperimentStore(path).read()


def test_nan_is_no_result(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        ExperimentStore(tmp_path / "cells.jsonl").append({"value": float("nan")})


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QSAM2Error, match=r"cells\.jsonl"):
        ExperimentStore(tmp_path / "file" / "cells.jsonl").append({})
