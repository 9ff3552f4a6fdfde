"""``qsam2 report``: where the page goes, and what is wrong with a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def test_a_page_beside_the_file(run, tmp_path: Path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n')
    result = run("report", log)
    assert result.exit_code == 0, result.stderr
    page = tmp_path / "metrics-report.html"
    assert result.stdout == f"wrote {page}\n"
    assert "Training:" in page.read_text()
    result = run("report", tmp_path, "--json", "--data", tmp_path / "absent")
    assert result.exit_code == 2
    assert "absent: no such folder" in result.stderr


def test_a_way_of_scoring_without_videos_and_pictures_without_j_and_f(run, tmp_path: Path, packed_file: Path):
    result = run("report", packed_file, "--protocol", "official")
    assert result.exit_code == 2
    assert "--protocol is how the videos of --data are scored" in result.stderr
    for folder, suffix in (("images", "jpg"), ("annotations", "png")):
        path = tmp_path / "data" / folder / "validation" / f"ADE_val_00000001.{suffix}"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.ones((8, 8, 3) if suffix == "jpg" else (8, 8), np.uint8)).save(path)
    result = run("report", packed_file, "--data", tmp_path / "data")
    assert result.exit_code == 2
    assert "holds pictures, of which there is no J&F" in " ".join(result.stderr.split())
