from __future__ import annotations

import json

import pytest
import torch
from training.model.sam2 import SAM2Train

from qsam2_ao.models.embedded import load_embedded
from qsam2_ao.training import embedded
from qsam2_ao.training.batches import BatchKind
from qsam2_ao.training.validation import quick_score


@pytest.fixture
def small(monkeypatch):
    """The real training on batches of one or two videos, scored on two."""
    monkeypatch.setattr(embedded, "PAIRS", BatchKind(2, 2, 2))
    monkeypatch.setattr(embedded, "IMAGES", BatchKind(1, 2, 1, images=True))
    monkeypatch.setattr(embedded, "CLIPS", BatchKind(1, 2, 2))
    monkeypatch.setattr(embedded, "LONG_CLIPS", BatchKind(1, 3, 2))
    monkeypatch.setattr(embedded, "quick_score", lambda model: quick_score(model, videos=1, num_frames=4))


COMMAND = [
    "--pretraining-steps",
    "2",
    "--steps",
    "6",
    "--workers",
    "0",
    "--evaluate-every",
    "4",
    "--device",
    "cpu",
]


@pytest.mark.slow
def test_command_trains_scores_and_exports(small, tmp_path):
    assert embedded.main(["--output", str(tmp_path), *COMMAND]) == 0
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [score["step"] for score in scores] == [4, 6]
    model = load_embedded(SAM2Train, weights=tmp_path / "qsam2_embedded.safetensors")
    average = torch.load(tmp_path / "training.pt", weights_only=True)["average"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, average[name].half().float()), name


@pytest.mark.slow
def test_interrupted_command_continues_to_the_same_weights(small, tmp_path, monkeypatch, capsys):
    assert embedded.main(["--output", str(tmp_path / "whole"), *COMMAND]) == 0

    original, calls = embedded.prompted_forward, []

    def interrupted(model, batch):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(model, batch)

    monkeypatch.setattr(embedded, "prompted_forward", interrupted)
    assert embedded.main(["--output", str(tmp_path / "parts"), *COMMAND]) == 130
    assert "continues" in capsys.readouterr().err
    assert embedded.main(["--output", str(tmp_path / "parts"), *COMMAND]) == 0
    whole, parts = (
        load_embedded(SAM2Train, weights=tmp_path / name / "qsam2_embedded.safetensors").state_dict()
        for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_damaged_checkpoint_gives_exit_code_one(small, tmp_path, capsys):
    (tmp_path / "training.pt").write_bytes(b"nonsense")
    assert embedded.main(["--output", str(tmp_path), *COMMAND]) == 1
    assert "training.pt is damaged" in capsys.readouterr().err


def test_stages_cover_the_training():
    first, second, third = embedded.stages(5000)
    assert (first.start, second.start, third.start) == (0, 600, 4000)
    # A large share of prompted images throughout: without it the model forgets to listen to points and boxes.
    assert all(dict(stage.kinds).get(embedded.IMAGES, 0) >= 0.4 for stage in (first, second, third))
