"""``qsam2 quantize``: a packed file of the preset, and what cannot be quantized."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_layouts import video, write_sa1b

from qsam2_ao.checkpoint import read_header
from qsam2_ao.data.procedural import generate_sequence, write_sequence


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    write_sequence(generate_sequence("train", 0, num_frames=4), tmp_path / "davis")
    return tmp_path / "davis"


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_folders_of_images_and_clips_give_a_trained_file(run, davis: Path, tmp_path: Path):
    output = tmp_path / "model.safetensors"
    write_sa1b(tmp_path / "sa-1b", 1, video(1))
    result = run(
        "quantize", "embedded", "--preset", "w2a8", "--calibration", davis / "JPEGImages", "--images", 3,
        "--train-data", f"{davis}:0.7,{tmp_path / 'sa-1b'}:0.3", "--steps", 2, "-o", output, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    header = read_header(output)
    assert report["file_bytes"] == output.stat().st_size
    assert report["training"]["steps"] == 2
    assert report["size"]["compression"] > 3
    assert header.info["qconfig"] == "w2a8"
    assert header.info["images"] == 3
    assert {layer.bits for layer in header.plan} == {2, 8}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["davis", "model.safetensors", "sa-1b"], (
        "work left behind"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_without_training_and_data_of_its_own(run, tmp_path: Path):
    result = run("quantize", "embedded", "--preset", "w8a8", "--images", 1, "-o", tmp_path / "w8a8.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "times smaller than bfloat16" in result.stdout
    assert {layer.bits for layer in read_header(tmp_path / "w8a8.safetensors").plan} == {8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embedded", "--preset", "w1a1"], "unknown preset 'w1a1'; the presets are w8a8"),
        (["embedded", "--calibration", "absent"], "--calibration absent: no such folder"),
        (["embedded", "--calibration", "{empty}"], "holds no image"),
        (["embedded", "--calibration", "{file}"], "is a file; name a folder of pictures"),
        (["embedded", "--steps", "1", "--train-data", "absent"], "--train-data absent: no such folder"),
        (["embedded", "--steps", "1", "--train-data", "{empty}"], "is not laid out like any data set"),
        (["embedded", "--steps", "1", "--train-data", "{empty}:0.7,absent:0.3"], "--train-data absent: no such folder"),
        (["embedded", "--steps", "1", "--train-data", "{empty}:much"], "the weight 'much' is no positive number"),
        (["embedded", "-o", "{file}/model.safetensors"], "cannot write"),
        (["embedded", "-o", "{empty}"], "is a folder; name a file in it"),
        (["embedded", "-o", "model.pt"], "model.pt: a .safetensors file is written"),
        (["embedded", "--train-data", "embedded"], "--train-data is for training: give --steps"),
        (["embedded", "--lr", "1e-3"], "--lr is for training: give --steps"),
        (["embedded", "--workers", "0"], "--workers is for training: give --steps"),
        (["embedded", "--freeze", "image_encoder"], "--freeze is for training: give --steps"),
        (["embedded", "--log-dir", "log"], "--log-dir is for training: give --steps"),
        (["embedded", "--activation-bits", "8"], "--activation-bits goes with --bits-file"),
        (["sam2.1-t"], "--calibration is missing"),
        (["sam2.1-t", "--calibration", "embedded"], "name its checkpoint with --checkpoint"),
        (["{packed}", "--calibration", "embedded"], "is quantized already"),
        (["absent.safetensors", "--calibration", "embedded"], "no model 'absent.safetensors'"),
    ],
)
def test_bad_input(run, packed_file: Path, tmp_path: Path, arguments: list[str], message: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {"empty": tmp_path / "empty", "file": tmp_path / "file", "packed": packed_file}
    filled = [argument.format(**places) for argument in arguments]
    if "-o" not in filled:
        filled += ["-o", str(tmp_path / "model.safetensors")]
    result = run("quantize", *filled)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "model.safetensors.work").exists(), "there is nothing to go on with"


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_a_full_disk_leaves_no_half_file(run, full_disk, tmp_path: Path):
    with full_disk(100_000):
        result = run("quantize", "embedded", "--images", 1, "-o", tmp_path / "model.safetensors")
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
    assert not (tmp_path / "model.safetensors").exists()
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]
