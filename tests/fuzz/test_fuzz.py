"""A few damaged files for every reader; ``python -m tests.fuzz`` reads thousands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fuzz.harness import case_file, run
from fuzz.mutate import damaged
from fuzz.readers import READERS, Reader
from fuzz.seeds import write_seeds

from qsam2_ao.errors import DataError

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the harness forks and reads /proc")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name, reader in READERS.items() if not reader.quick]


@pytest.mark.parametrize("name", [*(name for name, reader in READERS.items() if reader.quick), *SLOW])
def test_a_clear_error_or_the_right_result(name: str, tmp_path: Path) -> None:
    seeds, others = write_seeds(tmp_path, [name])
    for path in seeds[name]:
        if path.stem not in _REFUSED_WHOLE:
            READERS[name].read(path)
    report = run(READERS[name], seeds[name], others, range(40), seed=1)
    assert not report.faults, "\n\n".join(f"case {case}: {text}" for case, text in report.faults.items())
    assert report.read + report.refused == 40
    assert report.refused > 0


#: Whole files that are of the kind and refused all the same: colours as a mask, a pickled model, other models' weights.
_REFUSED_WHOLE = {"colours", "new", "old", "ema", "whole", "state", "hub"}


# --- the harness itself


def _reader(read: Callable[[Path], object]) -> Reader:
    return Reader("test", lambda folder: [], read)


def _outcome(read: Callable[[Path], object], tmp_path: Path) -> tuple[int, int, dict[int, str]]:
    seed = tmp_path / "seed.txt"
    seed.write_text("some words 12 and 5\n" * 10)
    report = run(_reader(read), [seed], [seed], range(3))
    return report.read, report.refused, report.faults


def _refuse(path: Path) -> None:
    raise DataError(f"{path} is refused")


def _say_nothing(path: Path) -> None:
    raise DataError("")


def _fail(path: Path) -> None:
    raise KeyError("model")


def test_outcomes_are_told_apart(tmp_path: Path) -> None:
    assert _outcome(lambda path: path.read_bytes(), tmp_path) == (3, 0, {})
    assert _outcome(_refuse, tmp_path) == (0, 3, {})
    assert "without a message" in _outcome(_say_nothing, tmp_path)[2][0]
    assert "KeyError: 'model'" in _outcome(_fail, tmp_path)[2][2]


def test_crashes_end_one_case_and_not_the_run(tmp_path: Path) -> None:
    read, refused, faults = _outcome(lambda path: os.abort(), tmp_path)
    assert (read, refused, sorted(faults)) == (0, 0, [0, 1, 2])
    assert "SIGABRT" in faults[1]


def test_hangs_and_memory_are_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.harness.SECONDS", 1)

    def hang(path: Path) -> None:
        while True:
            pass

    assert "more than 1 s" in _outcome(hang, tmp_path)[2][0]
    monkeypatch.setattr("fuzz.harness.BYTES", 64 << 20)
    assert "MemoryError" in _outcome(lambda path: bytearray(1 << 30), tmp_path)[2][0]


def test_a_case_is_the_same_again(tmp_path: Path) -> None:
    seed = tmp_path / "seed.json"
    seed.write_text('{"a": [1, 2, {"b": "text"}], "c": 5}')
    contents = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths = [case_file(_reader(_fail), [seed], [seed], case, 0, tmp_path / folder) for case in (7,)]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    kinds = {damaged(seed.read_bytes(), ".json", Random(i)) for i in range(50)}
    assert len(kinds) > 30
