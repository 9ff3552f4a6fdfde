"""``qsam2 report``: where the page goes, and what is wrong with a name."""

from __future__ import annotations

from pathlib import Path


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
