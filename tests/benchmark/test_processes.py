"""Measurements in a process of their own."""

from __future__ import annotations

import os
import signal

import pytest

from qsam2_ao.benchmark.processes import alone
from qsam2_ao.errors import QSAM2Error


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory runs out


def test_a_killed_process_is_named() -> None:
    with pytest.raises(QSAM2Error, match=r"\(killed\) was killed, most likely because memory ran out"):
        alone(killed)


def test_what_a_process_raises_arrives() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        alone(int, "x")
    assert alone(int, "7") == 7


def test_a_process_starts_with_other_variables_that_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSAM2_HERE", "before")
    added = {"QSAM2_HERE": "inside", "QSAM2_NEW": "new"}
    assert [alone(os.getenv, name, environment=added) for name in added] == ["inside", "new"]
    assert os.environ["QSAM2_HERE"] == "before"
    assert "QSAM2_NEW" not in os.environ
