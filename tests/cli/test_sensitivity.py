"""``qsam2 sensitivity``: from a model to a file of bits, to a packed file with those bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qsam2_ao.checkpoint import read_header
from qsam2_ao.graph import REGIONS
from qsam2_ao.sensitivity import Assignment

COMMAND = ("sensitivity", "embedded", "--images", 1, "--bits", "2,4", "--no-vrc", "--rounding", "nearest")


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What one process wrote and said."""
    folder = tmp_path_factory.mktemp("sensitivity")
    result = run(*COMMAND, "-o", folder)
    assert result.exit_code == 0, result.stderr
    return folder, result.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_from_a_model_to_a_packed_file_of_mixed_bits(run, measured: tuple[Path, str], tmp_path: Path):
    folder, packed = shutil.copytree(measured[0], tmp_path / "out"), tmp_path / "mixed.safetensors"
    assert "most sensitive of 125 layers" in measured[1]
    values = json.loads((folder / "sensitivity.json").read_text())
    assert len(values["records"]) == 250
    assert all((folder / f"{region}.png").stat().st_size > 10_000 for region in REGIONS)
    assignment = Assignment.load(folder / "bits.json")
    assert set(assignment.bits.values()) == {2, 4}

    # Another budget, from the layers that are kept.
    again = run(*COMMAND, "-o", folder, "--budget", "2.5", "--json")
    assert again.exit_code == 0, again.stderr
    report = json.loads(again.stdout)
    assert report["records"] == values["records"]
    assert report["assignment"]["bytes"] < assignment.bytes

    assignment.save(tmp_path / "w3.json")
    quantized = run(
        "quantize", "embedded", "--bits-file", tmp_path / "w3.json", "--images", 1, "-o", packed, "--json"
    )  # fmt: skip
    assert quantized.exit_code == 0, quantized.stderr
    header = read_header(packed)
    assert {layer.name: layer.bits for layer in header.plan if layer.name in assignment.bits} == assignment.bits
    assert header.info["qconfig"] == "w2-4a8"
    assert json.loads(quantized.stdout)["size"]["packed_bytes"] == assignment.bytes <= assignment.budget


@pytest.mark.slow
def test_shares_measure_what_one_process_does(run, measured: tuple[Path, str], tmp_path: Path):
    first = run(*COMMAND, "-o", tmp_path, "--shard", "1/2", "--json")
    assert first.exit_code == 0, first.stderr
    assert first.stdout == ""
    assert "of other shares still to come: 63 layers" in first.stderr
    last = run(*COMMAND, "-o", tmp_path, "--shard", "0/2", "--json")
    shared, alone = json.loads(last.stdout), json.loads((measured[0] / "sensitivity.json").read_text())
    assert shared.pop("assignment") == json.loads((tmp_path / "bits.json").read_text())
    assert shared == alone
    assert (tmp_path / "bits.json").read_text() == (measured[0] / "bits.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embedded", "--bits", "2,x"], "--bits 2,x: give bit-widths separated by commas"),
        (["embedded", "--bits", "1,2"], "bit-widths are 2 to 8"),
        (["embedded", "--metric", "psnr"], "--metric psnr: choose one of sqnr, jf"),
        (["embedded", "--rounding", "up"], "--rounding up: choose one of nearest, gptq"),
        (["embedded", "--budget", "w1"], "a budget is w2 to w8"),
        (["embedded", "--budget", "1000"], "smallest possible size is"),
        (["embedded", "--calibration", "absent"], "--calibration absent: no such folder"),
        (["embedded", "--metric", "jf", "--data", "absent"], "--data absent: no such folder"),
        (["sam2.1-t"], "--calibration is missing"),
        (["{packed}", "--calibration", "embedded"], "is quantized already"),
    ],
)
def test_bad_input_is_said_at_once(run, packed_file: Path, tmp_path: Path, arguments: list[str], message: str):
    result = run("sensitivity", *(a.format(packed=packed_file) for a in arguments), "-o", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_bits_file_and_its_alternatives(run, tmp_path: Path):
    path = tmp_path / "bits.json"
    Assignment({"absent": 3}, 0.0, 1, 1, "sqnr").save(path)
    for arguments, message in (
        (["--preset", "w4a8"], "leave --preset and --first-last-bits out"),
        (["--first-last-bits", "4"], "leave --preset and --first-last-bits out"),
        (["--activation-bits", "9"], "inputs have 2 to 8 bits, or 16 for float"),
        ([], "the model has no layer 'absent'"),
    ):
        result = run("quantize", "embedded", "--bits-file", path, *arguments, "-o", tmp_path / "model.safetensors")
        assert result.exit_code == 2, result.output
        assert message in result.stderr
    assert not (tmp_path / "model.safetensors").exists()
