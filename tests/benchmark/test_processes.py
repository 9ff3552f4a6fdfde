"""Measurements in a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

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


def rest(file: Path) -> None:
    file.with_suffix(".part").write_text(str(os.getpid()))
    file.with_suffix(".part").replace(file)
    time.sleep(600)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc tells which processes run")
def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from qsam2_ao.benchmark.processes import alone\n"
        "from tests.benchmark.test_processes import rest\n"
        f"if __name__ == '__main__': alone(rest, Path({str(tmp_path / 'pid')!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        within(60, (tmp_path / "pid").exists)
        child = int((tmp_path / "pid").read_text())
    finally:
        parent.kill()
        parent.wait()
    within(20, lambda: not runs(child))


def within(seconds: float, happened: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def runs(process: int) -> bool:
    """Whether it has not ended; one that nobody waits for has ended all the same."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
