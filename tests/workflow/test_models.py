"""Models by name: the three kinds, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao.errors import CheckpointError, QSAM2Error
from qsam2_ao.models.embedded import EMBEDDED_MODELS, build_embedded
from qsam2_ao.models.official import build_official
from qsam2_ao.stage import stage_of
from qsam2_ao.workflow import EMBEDDED_NAMES
from qsam2_ao.workflow.inspect import inspect_model
from qsam2_ao.workflow.models import load_model, load_runnable, parse_device


@pytest.mark.slow
def test_a_packed_file(packed_file: Path):
    model = load_model(str(packed_file))
    assert type(model) is SAM2VideoPredictor
    assert stage_of(model).layers


@pytest.mark.parametrize(("name", "size"), [("embedded", 96), ("embedded-256", 256)])
def test_the_embedded_models(name, size):
    model = load_model(name)
    assert type(model) is SAM2VideoPredictor
    assert model.image_size == size


def test_their_names_are_known_without_torch():
    assert tuple(EMBEDDED_MODELS) == EMBEDDED_NAMES


@pytest.mark.slow
def test_an_official_config_and_checkpoint(tmp_path: Path):
    source = build_official("sam2.1-t")
    torch.save({"model": source.state_dict()}, tmp_path / "tiny.pt")
    model = load_model("configs/sam2.1/sam2.1_hiera_t.yaml", tmp_path / "tiny.pt")
    assert type(model) is SAM2VideoPredictor
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "checkpoint", "message"),
    [
        ("sam2.1-t", None, "sam2.1-t is a config without weights"),
        ("sam2.1-t", "absent.pt", r"absent\.pt: no such file"),
        ("sam3-t", None, "no model 'sam3-t'"),
        ("embedded", "some.pt", "--checkpoint belongs to an official config"),
        ("sam2.1_hiera_tiny.pt", None, r"sam2\.1_hiera_tiny\.pt: no such file"),
        ("absent.yaml", "some.pt", "no such file"),
    ],
)
def test_names_that_are_no_model(name: str, checkpoint: str | None, message: str):
    with pytest.raises(QSAM2Error, match=message):
        load_model(name, Path(checkpoint) if checkpoint else None)


def test_a_file_that_is_no_packed_model(tmp_path: Path):
    (tmp_path / "text.safetensors").write_text("nothing")
    with pytest.raises(CheckpointError, match=r"text\.safetensors"):
        load_model(str(tmp_path / "text.safetensors"))


def test_a_checkpoint_alone_is_a_model(tmp_path: Path):
    source = build_embedded(seed=3)
    torch.save(source.state_dict(), tmp_path / "mine.PTH")
    save_file(source.state_dict(), tmp_path / "mine.safetensors")
    for name in ("mine.PTH", "mine.safetensors"):
        model = load_model(str(tmp_path / name))
        assert type(model) is SAM2VideoPredictor
        assert all(torch.equal(a, b) for a, b in zip(source.parameters(), model.parameters(), strict=True))
        assert type(load_runnable(str(tmp_path / name))) is SAM2VideoPredictor
        assert inspect_model(str(tmp_path / name)).file_bytes == (tmp_path / name).stat().st_size


def test_exported_files_run_on_what_they_were_exported_for(tmp_path: Path):
    with pytest.raises(QSAM2Error, match="--target int8 is for packed files"):
        load_runnable(str(tmp_path), target="int8")
    with pytest.raises(QSAM2Error, match=r"unknown lowering target 'int9'.*int8"):
        load_runnable(str(tmp_path), target="int9")


def test_devices():
    assert parse_device("cpu") == torch.device("cpu")
    for name in ("gpu", "meta", "cuda:99"):
        with pytest.raises(QSAM2Error, match=f"--device {name}: .*cpu"):
            parse_device(name)
