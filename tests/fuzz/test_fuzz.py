"""A few damaged files for every reader; ``python -m tests.fuzz`` reads thousands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from fuzz.harness import BYTES, SECONDS, case_file
from fuzz.mutate import damaged
from fuzz.readers import READERS, Reader
from fuzz.seeds import write_seeds

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the harness forks and reads /proc")
ROOT = Path(__file__).parents[2]
QUICK = [name for name, reader in READERS.items() if reader.quick]


def alone(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a module in a process without threads: in one that has them, a forked child may wait for ever."""
    command = [sys.executable, "-m", *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.parametrize("names", [QUICK, [name for name in READERS if name not in QUICK]], ids=["quick", "slow"])
def test_a_clear_error_or_the_right_result(names: list[str]) -> None:
    done = alone("tests.fuzz", *names, "--cases", 40, "--seed", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == names
    assert " 0 refused" not in done.stdout


@pytest.mark.parametrize("name", QUICK)
def test_whole_files_are_read(name: str, tmp_path: Path) -> None:
    for path in write_seeds(tmp_path, [name])[0][name]:
        if path.stem not in _REFUSED_WHOLE:
            READERS[name].read(path)


#: Whole files that are of the kind and refused all the same: colours as a mask, a pickled model, other models' weights.
_REFUSED_WHOLE = {"colours", "new", "old", "ema", "whole", "state", "hub"}


# --- the harness itself


def _outcome(name: str, seconds: int = SECONDS, size: int = BYTES) -> tuple[int, int, dict[str, str]]:
    done = alone("fuzz.outcomes", name, seconds, size)
    assert done.returncode == 0, done.stderr
    read, refused, faults = json.loads(done.stdout)
    return read, refused, faults


@pytest.mark.slow
def test_outcomes_are_told_apart() -> None:
    assert _outcome("reads") == (3, 0, {})
    assert _outcome("refuses") == (0, 3, {})
    assert "without a message" in _outcome("says nothing")[2]["0"]
    assert "KeyError: 'model'" in _outcome("fails")[2]["2"]


@pytest.mark.slow
def test_crashes_end_one_case_and_not_the_run() -> None:
    read, refused, faults = _outcome("crashes")
    assert (read, refused, sorted(faults)) == (0, 0, ["0", "1", "2"])
    assert "SIGABRT" in faults["1"]


@pytest.mark.slow
def test_hangs_and_memory_are_faults() -> None:
    assert "more than 1 s" in _outcome("hangs", seconds=1)[2]["0"]
    assert "MemoryError" in _outcome("eats", size=64 << 20)[2]["0"]


def test_a_case_is_the_same_again(tmp_path: Path) -> None:
    seed = tmp_path / "seed.json"
    seed.write_text('{"a": [1, 2, {"b": "text"}], "c": 5}')
    contents = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        reader = Reader("test", lambda folder: [], Path.read_bytes)
        contents.append(case_file(reader, [seed], [seed], 7, 0, tmp_path / folder).read_bytes())
    assert contents[0] == contents[1]
    kinds = {damaged(seed.read_bytes(), ".json", Random(i)) for i in range(50)}
    assert len(kinds) > 30
