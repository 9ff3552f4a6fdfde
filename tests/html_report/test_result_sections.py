"""What sections say of results."""

from __future__ import annotations

import math
from pathlib import Path

from qsam2_ao.comparison import Comparison, ModelResult
from qsam2_ao.html_report.figures import bars
from qsam2_ao.html_report.page import Facts, Table, Text
from qsam2_ao.html_report.result_sections import (
    comparison_section,
    demo_section,
    evaluation_section,
    training_section,
)
from qsam2_ao.reporting.figures import save_figure


def test_a_demo_says_what_was_lost_and_how_much_smaller_the_files_are(tmp_path: Path):
    scores = {"j": 70.0, "f": 80.0, "jf": 75.0, "miou": 60.0}
    first = {"name": "float", "bits": "16 / 32", "file_bytes": 4 * 2**20, **scores}
    second = {"name": "w4a8", "bits": "4 / 8", "file_bytes": 2**20, **scores, "jf": 74.0, "miou": None}
    settings = {"steps": 80, "lr": 1e-3, "model": ["a hash"]}
    section = demo_section(tmp_path, {"rows": [first, second], "pictures": ["absent.png"], "settings": settings})
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert table.rows == [
        ["float", "16 / 32", "75.0", "70.0", "80.0", "60.0", "4.0 MiB", "-"],
        ["w4a8", "4 / 8", "74.0 (-1.0)", "70.0 (+0.0)", "80.0 (+0.0)", "-", "1.0 MiB", "4.0 times"],
    ]
    (facts,) = (block for block in section.blocks if isinstance(block, Facts))
    assert facts.facts == {"training steps": "80", "learning rate": "0.001"}


def test_a_comparison_has_a_column_for_each_model(tmp_path: Path):
    def model(label: str, iou: float) -> ModelResult:
        return ModelResult(label, label, "auto", "float", 2**20, iou, iou, 100.0, 0.5, None, None, None, None, None)

    found = Comparison((model("a", 100.0), model("b", 97.0)), (), (), "cpu", {})
    table = next(block for block in comparison_section(tmp_path, found).blocks if isinstance(block, Table))
    assert table.headings == ["", "a", "b"]
    assert ["IoU %", "-", "97.0"] in table.rows


def test_an_evaluation_says_how_it_was_measured(tmp_path: Path):
    content = {"model": "m", "protocol": "official", "metric": "davis", "jf": 80.0, "settings": {"prompt": "3-click"}}
    (facts,) = (b for b in evaluation_section(tmp_path / "r.json", content).blocks if isinstance(b, Facts))
    expected = {"model": "m", "protocol": "official", "metric": "davis", "prompt": "3-click", "J&F": "80.0 %"}
    assert facts.facts == expected


def test_an_evaluation_of_several_prompts_names_each_and_what_was_left_out(tmp_path: Path):
    content = {"miou": 77.9, "miou_by_prompt": {"click": 77.9, "3-click": 83.9}, "not_scored": ["bear", "cat"]}
    blocks = evaluation_section(tmp_path / "r.json", content | {"settings": {"prompt": "mask"}}).blocks
    (facts,) = (block for block in blocks if isinstance(block, Facts))
    assert facts.facts == {"mIoU, click": "77.9 %", "mIoU, 3-click": "83.9 %"}
    assert "Not scored: bear, cat." in [block.text for block in blocks if isinstance(block, Text)]


def test_a_training_that_diverged_says_so(tmp_path: Path):
    rows = [{"step": step, "loss": loss} for step, loss in enumerate((2.0, 0.5, math.nan, math.inf))]
    (facts,) = (block for block in training_section(tmp_path / "m.jsonl", rows).blocks if isinstance(block, Facts))
    assert facts.facts["loss, first and last"] == "2, inf"
    assert facts.facts["lines with a loss that is not finite"] == "2"


def test_dollars_in_names_are_no_mathematics(tmp_path: Path):
    figure = bars(["$a_$ b"], {"J&F": [80.0]}, "J&F")
    save_figure(figure, tmp_path / "figure.png")
    assert figure.axes[0].get_yticklabels()[0].get_text() == r"\$a_\$ b"
