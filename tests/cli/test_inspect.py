"""``qsam2 inspect``: what the file says, for people and for scripts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from qsam2_ao.checkpoint import read_header
from qsam2_ao.cli.common import print_json


def test_facts_for_scripts(run, packed_file: Path):
    result = run("inspect", packed_file, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    plan = read_header(packed_file).plan
    layers = {layer["name"]: layer for layer in facts["coverage"]["layers"]}
    assert facts["file_bytes"] == packed_file.stat().st_size
    assert facts["info"]["qconfig"] == "w4a8"
    assert facts["image_size"] == 96
    assert all(layers[layer.name]["weight_bits"] == layer.bits for layer in plan)
    assert facts["size"]["packed_values"] == sum(math.prod(layer.shape) for layer in plan)


def test_figures_that_json_has_not_are_null(capsys):
    print_json({"a": [math.nan, 1.5], "b": (-math.inf, None, True)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": [None, None, True]}


def test_facts_for_people(run, packed_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # readline sets it for a program's children
    result = run("inspect", packed_file)
    assert result.exit_code == 0
    assert "recipe w4a8" in result.stdout
    assert "SAM2VideoPredictor, 96 pixels" in result.stdout
    line = next(line for line in result.stdout.splitlines() if "image_encoder.trunk.blocks.0.norm1" in line)
    assert line.split()[1:7] == ["LayerNorm", "32", "32", "x", "32", "-"], "a file has room for whole names"


def test_a_truncated_file(run, packed_file: Path, tmp_path: Path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(packed_file.read_bytes()[:5000])
    result = run("inspect", cut)
    assert result.exit_code == 2
    assert "cut.safetensors" in result.stderr
    assert result.stdout == ""


@pytest.mark.slow
def test_layers_are_timed_as_a_target_runs_them(run, packed_file: Path):
    result = run("inspect", packed_file, "--time", "--target", "packed", "--json")
    assert result.exit_code == 0, result.stderr
    layers = json.loads(result.stdout)["coverage"]["layers"]
    timed = [layer for layer in layers if layer["time"] is not None]
    assert len(timed) > 100
    assert all(layer["target"] == "packed" and layer["time"]["ms"] > 0 for layer in timed)
    float_model = run("inspect", "embedded", "--time")
    assert float_model.exit_code == 2
    assert "--time is for packed files" in float_model.stderr
