"""``qsam2 compare``: a table, a file of results and a contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_a_comparison_is_printed_and_written(run, packed_file: Path, picture: Path, tmp_path: Path):
    arguments = ("compare", "embedded", packed_file, "--image", picture, "--grid", 2, "--no-memory", "-o", tmp_path)
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "compared with embedded" in result.stdout
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert [model["label"] for model in written["models"]] == ["embedded", "random-w4a8"]
    assert written["subjects"][0]["objects"] == 4
    assert (tmp_path / "contact_sheet.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embedded", "{picture}"], "it may be truncated, or a .pt checkpoint"),
        (["embedded", "embedded-256", "--image", "absent.png"], "absent.png: no such file"),
        (["embedded", "embedded-256", "--prompts", "p.json"], "name them with --image and --video"),
        (["embedded", "embedded-256", "--image", "{picture}", "--max-pixels", "99"], "reduce the picture"),
        (["embedded", "embedded-256", "-o", "{picture}"], "is a file, not a folder"),
    ],
)
def test_bad_input_is_named(run, picture: Path, arguments: list[str], message: str):
    result = run("compare", *(argument.format(picture=picture) for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
