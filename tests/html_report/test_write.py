"""The page is whole, needs nothing else, and runs nothing that a file brings."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sam2.modeling.sam2_base import SAM2Base

from qsam2_ao import save_qsam2
from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.errors import DataError
from qsam2_ao.html_report import ReportOptions, write_report
from qsam2_ao.html_report.sources import find_sources
from qsam2_ao.models.embedded import EMBEDDED_WEIGHTS

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Headings, and what it would load or run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.outside: list[str] = []
        self.tags: set[str] = set()
        self._in_heading = False
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes) -> None:
        self.tags.add(tag)
        self._in_heading = tag == "h2"
        for name, value in attributes:
            if name in ("src", "href") and not value.startswith(("data:image/", "#")):
                self.outside.append(value)
            assert not name.startswith("on"), f"<{tag} {name}> runs code"

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data)
        self._in_heading = False


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Results of every kind that need no model."""
    folder = tmp_path / "run"
    folder.mkdir()
    scores = {name: {"jf": 40.0 + i, "j": 39.0, "f": 41.0 + i} for i, name in enumerate(["a", EVIL])}
    (folder / "evaluation.json").write_text(
        json.dumps({"model": EVIL, "jf": 41, "j": 39, "f": 42, "miou": 70, "video": {"sequences": scores}})
    )
    lines = [
        {"step": step, "loss": 2 / (step + 1), "lr/weights": 1e-4, "loss/dice": 0.1, EVIL: step} for step in range(9)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\nbroken\n{"step": 9, "loss": NaN}')
    records = [{"layer": layer, "bits": bits, "loss": bits / 100} for layer in ("l.0", EVIL) for bits in (2, 4)]
    (folder / "sensitivity.json").write_text(json.dumps({"metric": "sqnr", "settings": {}, "records": records}))
    work = folder / "w4a8.safetensors.work" / "0123"
    work.mkdir(parents=True)
    (work / "settings.json").write_text(json.dumps({"preset": "w4a8", "seed": 3}))
    (folder / "other.json").write_text("[1]")
    (folder / "others.json").write_text('{"metric": "x", "records": [{"layer": 1}]}')
    (folder / "empty.json").write_text('{"metric": "x", "records": []}')
    return folder


def test_results_of_every_kind(run_folder: Path, tmp_path: Path):
    page = Page(write_report([run_folder], tmp_path / "page.html"))
    assert page.headings == [
        "Sources",
        f"Evaluation: {EVIL}",
        "Run: w4a8.safetensors.work",
        "Training: run/metrics.jsonl",
        "Sensitivity: run",
    ]
    assert not page.outside
    assert not page.tags & {"script", "iframe", "object", "link", "form"}
    assert "default-src 'none'" in page.text
    assert page.text.count("<img") >= 5


@pytest.mark.slow
def test_a_packed_file_beside_its_float_model(quantized: SAM2Base, images: list[np.ndarray], tmp_path: Path):
    path = tmp_path / "w4a8.safetensors"
    save_qsam2(quantized, path)
    videos = [generate_sequence("test", i, num_frames=4) for i in range(2)]
    options = ReportOptions(reference="embedded", images=images, videos=videos)
    page = Page(write_report([path], tmp_path / "page.html", options))
    assert page.headings == [
        "Sources",
        "J&F by video",
        *(f"{part}: w4a8" for part in ("Model", "Bits by layer", "Accuracy by layer")),
    ]
    assert re.search(r"loses most by itself: \d+\.\d dB", page.text)
    assert "Protocol official: " in page.text
    assert "image_encoder.<wbr>" in page.text, "narrow screens break names of layers behind dots"
    assert not page.outside
    alone = Page(write_report([path], tmp_path / "page.html"))
    assert "Name the float model with --float" in alone.text


def test_packed_files_of_one_name_have_their_paths_as_titles(packed_file: Path, tmp_path: Path):
    paths = [tmp_path / folder / "w4a8.safetensors" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        shutil.copy(packed_file, path)
    page = Page(write_report(paths, tmp_path / "page.html"))
    parts = ("Model", "Bits by layer", "Accuracy by layer")
    assert page.headings == ["Sources", *(f"{part}: {path.with_suffix('')}" for path in paths for part in parts)]
    assert "Name the float model with --float" in page.text


def test_files_of_one_name_and_float_weights_beside_them(packed_file: Path, tmp_path: Path):
    for folder in ("a", "a/b"):
        (tmp_path / folder).mkdir()
        shutil.copy(packed_file, tmp_path / folder / "w4a8.safetensors")
    shutil.copy(EMBEDDED_WEIGHTS, tmp_path / "float.safetensors")
    assert find_sources([tmp_path]).packed == [tmp_path / name / "w4a8.safetensors" for name in ("a", "a/b")]


def test_nothing_to_report(tmp_path: Path):
    (tmp_path / "text.txt").touch()
    for path, message in (
        (tmp_path, "nothing to report on in"),
        (tmp_path / "text.txt", "nothing to report on;"),
        (tmp_path / "x", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            write_report([path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
