from __future__ import annotations

from pathlib import Path

import pytest

from qsam2_ao.benchmark.inference.workload import InferenceWorkload
from qsam2_ao.benchmark.memories import CHOICES, PROCEDURAL, measure, pareto, picture
from qsam2_ao.errors import QConfigError
from qsam2_ao.reporting.figures import save_figure


def test_what_was_measured_is_drawn(tmp_path: Path) -> None:
    records = [
        {"name": c.name, "codes": c.codes, "time": 1.0 - 0.05 * i, "jf": {"clips": 80.0 - i}}
        for i, c in enumerate(CHOICES)
    ]
    path = save_figure(picture({"settings": {"data": ["clips"]}, "records": records}), tmp_path / "memories.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_only_what_nothing_beats_is_on_the_front() -> None:
    assert pareto([(1, 80), (0.5, 79), (0.7, 78), (0.5, 70), (2, 80)]) == [(0.5, 79), (1, 80)]


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_every_choice_is_scored_and_timed_once(packed_file: Path, tmp_path: Path) -> None:
    # In the process that times, its ranges would be searched for at length.
    InferenceWorkload("sam2.1-t", 128, 1, tmp_path / "memories.work" / "files").packed("w4a8")

    def run() -> dict[str, object]:
        names = ["codes, last 2"]
        return measure(
            str(packed_file), [PROCEDURAL], tmp_path, target="packed", names=names, videos=1, timed=("sam2.1-t", 128)
        )

    results = run()
    own, other = results["records"]  # type: ignore[misc]
    assert (own["name"], other["name"]) == ("SAM2", "codes, last 2")
    assert own["time"] == 1.0
    assert other["bytes"] * 2 == own["bytes"]
    kept = list((tmp_path / "memories.work").rglob("* procedural.json"))
    before = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 2
    assert run() == results
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_unknown_choices_and_data_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QConfigError, match="unknown choice 'merge to 4'"):
        measure("model", [PROCEDURAL], tmp_path, names=["merge to 4"])
    with pytest.raises(QConfigError, match="one name"):
        measure("model", ["davis/val", "mose/val"], tmp_path)
