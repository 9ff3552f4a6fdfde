"""``qsam2 demo``: everything in one go, and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from qsam2_ao.checkpoint import read_header
from qsam2_ao.data.photographs import PHOTOGRAPHS
from qsam2_ao.workflow import demo, photographs

SMALL = ("--steps", 1, "--videos", 1, "--images", 2)


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_the_whole_journey_and_again(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "FRAMES", 5)
    monkeypatch.setattr(photographs, "OTHERS", ("moon",))
    monkeypatch.setattr(photographs, "PHOTOGRAPHS", PHOTOGRAPHS[:2])
    monkeypatch.setattr(photographs, "MODEL", "embedded")  # test_photographs.py has the larger one
    result = run("demo", *SMALL, "-o", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    page = Path(report.pop("report")).read_text()
    assert report == json.loads((tmp_path / "results.json").read_text())
    for heading in ("Before and after", "J&amp;F by video", "Accuracy by layer: w2a8", "Speed by layer: w4a8"):
        assert f"<h2>{heading}</h2>" in page
    before, four, two = report["rows"]
    assert [row["name"] for row in report["rows"]] == ["float", "w4a8", "w2a8"]
    assert before["file_bytes"] > four["file_bytes"] > two["file_bytes"]
    for row in report["rows"]:
        assert 0 < row["jf"] <= 100
        assert row["jf"] == pytest.approx((row["j"] + row["f"]) / 2)
        assert 0 < row["miou"] <= 100
    for name in ("w4a8", "w2a8"):
        assert read_header(tmp_path / f"{name}.safetensors").info["qconfig"] == name
        assert (tmp_path / f"{name}.safetensors").stat().st_size in (four["file_bytes"], two["file_bytes"])
    video, sheet = report["pictures"]
    assert Image.open(video).size[0] > 4 * 240
    width, height = Image.open(sheet).size
    assert width > 1.8 * height, "two rows of four"

    (tmp_path / "w2a8.safetensors").unlink()
    again = run("demo", *SMALL, "-o", tmp_path)
    assert again.exit_code == 0, again.stderr
    assert "calibrating" not in again.stderr, "a finished step ran again"
    assert "w2a8" in again.stdout
    assert "smaller" in again.stdout
    assert (tmp_path / "w2a8.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--preset", "w5a5"], "unknown preset 'w5a5'"), (["-o", "{file}/demo"], "cannot write")]
)
def test_bad_input(run, tmp_path: Path, arguments: list[str], message: str):
    (tmp_path / "file").touch()
    result = run("demo", *[argument.format(file=tmp_path / "file") for argument in arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
