"""Times that are kept from process to process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qsam2_ao.deploy.measured import remembered, time_in_turn


class Stopwatch:
    """Counts how often it was asked to measure."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> dict[str, float]:
        self.asked += 1
        return {"a": 1.5, "b": float(self.asked)}


def test_times_are_measured_once_for_each_thing(tmp_path: Path) -> None:
    measure = Stopwatch()
    first = remembered({"what": "x"}, "ab", measure, tmp_path / "cache")
    assert remembered({"what": "x"}, "ab", measure, tmp_path / "cache") == first == {"a": 1.5, "b": 1.0}
    assert remembered({"what": "y"}, "ab", measure, tmp_path / "cache")["b"] == 2.0
    assert measure.asked == 2
    files = list((tmp_path / "cache").iterdir())
    assert sorted(path.suffix for path in files) == [".json", ".json"], "no temporary file is left"
    assert json.loads(files[0].read_text())["of"]["processor"]


def test_variables_that_keep_torch_from_instructions_are_part_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Stopwatch()
    for isa in ("AVX2", "AVX512_CORE_VNNI", "AVX2"):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
        remembered({"what": "x"}, "ab", measure, tmp_path)
    assert measure.asked == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:40],
        lambda text: "[]",
        lambda text: "\x00" * 30,
        lambda text: text.replace("1.5", "NaN"),
        lambda text: text.replace("1.5", "-1"),
        lambda text: text.replace("1.5", '"fast"'),
        lambda text: text.replace('"b": 1.0', '"c": 1.0'),
        lambda text: text.replace('"x"', '"another thing"'),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_file_is_measured_anew_and_mended(tmp_path: Path, damage) -> None:
    measure = Stopwatch()
    remembered({"what": "x"}, "ab", measure, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(damage(path.read_text()))
    assert remembered({"what": "x"}, "ab", measure, tmp_path)["b"] == 2.0
    assert remembered({"what": "x"}, "ab", measure, tmp_path)["b"] == 2.0


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    measure = Stopwatch()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc/absent")):
        assert remembered({"what": "x"}, "ab", measure, folder)["a"] == 1.5
        assert remembered({"what": "x"}, "ab", measure, folder)["a"] == 1.5
    assert measure.asked == 4


def test_no_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert remembered({"what": "x"}, "ab", Stopwatch())["a"] == 1.5


def test_the_shortest_time_counts_and_the_first_call_does_not() -> None:
    calls: list[str] = []
    times = time_in_turn({name: lambda name=name: calls.append(name) for name in ("a", "b")})
    assert calls[:4] == ["a", "b", "a", "b"]
    assert len(calls) == 2 * 31
    assert 0 <= times["a"] < 50
