"""The chart of size, speed and accuracy, from made-up results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qsam2_ao.benchmark.inference.footprint import CHECKPOINT
from qsam2_ao.benchmark.inference.methods import REFERENCE
from qsam2_ao.benchmark.inference.parts import ENCODER
from qsam2_ao.benchmark.overview import main, overview

MODEL = "sam2.1-t"
SIZES = ((CHECKPOINT, 8), ("w8a8", 4), ("w2a8", 1))
FILES = [{"model": MODEL, "file": name, "file_bytes": mib << 20} for name, mib in SIZES]
TIMES = [
    {"model": MODEL, "part": ENCODER, "size": 1024, "threads": 2, "method": name, "ms": ms}
    for name, ms in ((REFERENCE, 90.0), ("qsam2 W8A8", 30.0))
]


def score(method: str, setting: str, seed: int, value: float) -> dict[str, Any]:
    where = {"model": "plain", "method": method, "setting": setting}
    return {**where, "metric": "J&F", "seed": seed, "value": value}


SCORES = [score("float", "float", 0, 86.0), *(score("VRC+GPTQ", "PTQ W2A8", seed, 80.0 + seed) for seed in (0, 1))]
TRAINED = [score("QSAM2, part by part", "W2A8", 0, 84.0)]


def test_bars_and_lines_are_the_results() -> None:
    size, speed, accuracy = overview(TIMES, FILES, SCORES).axes
    assert [bar.get_height() for bar in size.patches] == [8, 4, 0, 1]  # one was not measured
    assert [text.get_text() for text in size.texts] == ["8.0", "4.0", "", "1.0"]
    assert [bar.get_height() for bar in speed.patches] == [90, 30, 0, 0]
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in accuracy.lines}
    assert lines["J&F, calibrated only"] == ([2], [80.5])  # the mean over seeds
    assert "J&F, trained" not in lines
    assert lines["J&F, float"][1] == [86.0, 86.0]


def test_what_was_trained_is_a_line_too() -> None:
    lines = {
        line.get_label(): list(line.get_ydata()) for line in overview(TIMES, FILES, SCORES + TRAINED).axes[2].lines
    }
    assert lines["J&F, trained"] == [84.0]


def test_nothing_measured_is_a_chart_too() -> None:
    assert len(overview([], [], []).axes) == 3


def test_it_is_drawn_beside_its_results(tmp_path: Path) -> None:
    written = {"inference": TIMES, "inference_details": {"files": FILES}, "real_parts/accuracy": SCORES + TRAINED}
    for name, content in written.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    main([str(tmp_path)])
    assert (tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")
