"""Timing beside busy processes, really run on the embedded model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from qsam2_ao.benchmark.inference import busy
from qsam2_ao.benchmark.inference.workload import InferenceWorkload

FILE = "embedded-w4a8.safetensors"
"""As the benchmark calls it, which makes it where it is not."""


@pytest.fixture
def workload(tmp_path: Path) -> InferenceWorkload:
    return InferenceWorkload(busy.EMBEDDED, 96, 1, tmp_path)


@pytest.mark.slow
def test_situations_are_timed(workload: InferenceWorkload, packed_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(packed_file, workload.files / FILE)  # speed does not depend on the weights
    chosen = busy.situations(1)[2:5:2]
    assert [(s.loops, s.copies) for s in chosen] == [(1, 1), (0, 2)]
    monkeypatch.setattr(busy, "situations", lambda cores: chosen)
    records = busy.busy_machine(workload, 1, methods=["int8"], rounds=1, progress=False)
    assert [r["situation"] for r in records] == [s.name for s in chosen]
    assert all(0 < r["load_seconds"] < r["seconds"] for r in records)


def test_the_situations_of_two_cores() -> None:
    names = ["beside 1 busy loop", "beside 2 busy loops", "beside 4 busy loops", "3 at once"]
    assert [s.name for s in busy.situations(2)][2:] == names


def test_settings_are_those_of_the_command_line_and_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with busy._settings("int8"):
        assert os.environ["GOMP_SPINCOUNT"] == "300"
    with busy._settings("int8, torch's own waiting"):
        assert "GOMP_SPINCOUNT" not in os.environ
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.slow
def test_an_error_in_a_process_is_told(workload: InferenceWorkload) -> None:
    (workload.files / FILE).write_bytes(b"nothing")
    with pytest.raises(Exception, match="no complete safetensors file"):
        busy.busy_machine(workload, 1, methods=["int8"], rounds=1, progress=False)
