"""What the models of a comparison are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsam2_ao.comparison.contenders import contenders
from qsam2_ao.errors import QSAM2Error


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["embedded", "out/tiny.safetensors"], ["embedded", "tiny"]),
        (["a/tiny.pt", "b/tiny.pt", "c.pt"], ["a/tiny.pt", "b/tiny.pt", "c"]),
        (["tiny.pt@packed", "tiny.pt@int8", "embedded@auto"], ["tiny@packed", "tiny@int8", "embedded"]),
        (["x/a/t.pt", "y/a/t.pt"], ["x/a/t.pt", "y/a/t.pt"]),
    ],
)
def test_labels_tell_models_apart(names: list[str], labels: list[str]):
    assert [contender.label for contender in contenders(names)] == labels


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["embedded"], "at least two"),
        (["embedded", "sam2.1-t"], "config without weights"),
        (["embedded", "configs/sam2.1/sam2.1_hiera_t.yaml"], "config without weights"),
        (["a.pt", "a.pt"], "named twice"),
        (["embedded", "embedded-256@int5"], "unknown lowering target 'int5'"),
    ],
)
def test_what_cannot_be_compared(names: list[str], message: str):
    with pytest.raises(QSAM2Error, match=message):
        contenders(names)


def test_two_spellings_of_one_file_are_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    for other in ("./a.safetensors", str(tmp_path / "a.safetensors")):
        with pytest.raises(QSAM2Error, match="named twice"):
            contenders(["a.safetensors", other])
        labels = [contender.label for contender in contenders(["a.safetensors@packed", f"{other}@int8"])]
        assert labels == ["a@packed", "a@int8"]
