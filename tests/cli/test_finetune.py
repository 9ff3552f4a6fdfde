"""``qsam2 finetune``: a float checkpoint that everything reads, and what cannot be fine-tuned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qsam2_ao.data.procedural import generate_sequence, write_sequence
from qsam2_ao.models.embedded import EMBEDDED_MODELS
from qsam2_ao.training.metrics import read_metrics
from qsam2_ao.workflow.models import load_model


@pytest.mark.slow
def test_a_float_checkpoint_comes_out(run, tmp_path: Path):
    for i in range(2):
        write_sequence(generate_sequence("train", i, num_frames=3), tmp_path / "davis")
    output = tmp_path / "mine.pt"
    result = run(
        "finetune", "embedded", "--train-data", tmp_path / "davis", "--val-data", tmp_path / "davis", "--steps", 2,
        "--validate-every", 1, "--batch-size", 2, "--accumulate", 2, "--frames", 2, "--objects", 1, "--augment",
        "--bf16", "--freeze", "image_encoder", "--log-dir", tmp_path / "log", "-o", output, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert sorted(report["held_out"]) == ["0", "1", "2"]
    assert report["held_out"][str(report["kept_step"])] == min(report["held_out"].values())
    assert [line["step"] for line in read_metrics(tmp_path / "log")] == [1, 2]
    assert read_metrics(tmp_path / "log")[-1]["held_out"] == report["held_out"]["2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["davis", "log", "mine.pt"], "work left behind"
    tuned = load_model(str(EMBEDDED_MODELS["embedded"].config), output).state_dict()
    start = load_model("embedded").state_dict()
    changed = {name for name, value in start.items() if not torch.equal(value, tuned[name])}
    assert bool(changed) == (report["kept_step"] > 0)
    assert not [name for name in changed if name.startswith("image_encoder")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{packed}", "--train-data", "embedded", "-o", "x.pt"], "is quantized, and its float weights are gone"),
        (["embedded", "-o", "x.safetensors"], "a .pt file is written"),
        (["embedded", "-o", "x.pt", "--train-data", "absent"], "--train-data absent: no such folder"),
        (["embedded", "-o", "x.pt", "--val-data", "absent"], "--val-data absent: no such folder"),
        (["embedded", "-o", "x.pt", "--log-dir", "x.json"], "x.json: a folder is written, not a .json file"),
        (["embedded", "-o", "x.pt", "--freeze", "encoder"], "image_encoder"),
        (["embedded", "-o", "x.pt", "--batch-size", "3", "--accumulate", "2"], "cannot be dealt to 1 processes"),
    ],
)
def test_bad_input(run, packed_file: Path, tmp_path: Path, monkeypatch, arguments: list[str], message: str):
    monkeypatch.chdir(tmp_path)
    result = run("finetune", *(argument.format(packed=packed_file) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
