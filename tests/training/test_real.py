from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from real_pictures import write_library, write_validation
from training.model.sam2 import SAM2Train

from qsam2_ao.data.real import Library
from qsam2_ao.errors import DataError
from qsam2_ao.models.embedded import EMBEDDED_256_CONFIG, load_embedded
from qsam2_ao.training import real
from qsam2_ao.training.real_batches import Mix, RealBatches, SizeStage
from qsam2_ao.training.real_validation import real_score


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_library(tmp_path_factory.mktemp("real"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real training, on one picture or clip of two frames a step."""
    for name, value in {"images": 1, "clips": 1}.items():
        monkeypatch.setattr(Mix, name, value)
    monkeypatch.setattr(real, "real_score", lambda model, folder: real_score(model, folder, procedural_videos=1))


def command(root: Path, output: Path) -> list[str]:
    options = {"--data": root, "--output": output, "--steps": 4, "--frames": 2, "--device": "cpu"}
    return [*(str(part) for option in options.items() for part in option), "--sizes", "64:0", "96:2"]


def test_a_batch_is_a_function_of_seed_and_step(root: Path) -> None:
    mix = Mix(images=2, clips=1, frames=2)
    sizes = (SizeStage(0, 64), SizeStage(5, 96))
    batches, again = (RealBatches(Library.open(root), sizes, mix, seed=3) for _ in range(2))
    lengths = set()
    for step in range(12):
        raw, same = batches[step], again[step]
        assert raw.frames.shape[2:4] == ((64, 64) if step < 5 else (96, 96))
        assert np.array_equal(raw.frames, same.frames)
        assert np.array_equal(raw.masks, same.masks)
        assert np.array_equal(raw.objects, same.objects)
        assert len(raw.objects)
        lengths.add(len(raw.frames))
    assert lengths == {1, 2}


def test_every_kind_of_scene_can_be_had(root: Path) -> None:
    for kind, _ in Mix().shares:
        mix = Mix(shares=((kind, 1.0),), images=2, clips=1, frames=2)
        raw = RealBatches(Library.open(root), (SizeStage(0, 64),), mix)[0]
        assert len(raw.frames) == (2 if kind in ("clip", "pair", "procedural") else 1)


def test_the_first_size_starts_at_the_first_step(root: Path) -> None:
    with pytest.raises(DataError, match="step 0"):
        RealBatches(Library.open(root), (SizeStage(4, 64),))


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_weights(
    small: None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert real.main(command(root, tmp_path / "whole")) == 0
    step = real.Watch.__call__

    def interrupt(self: real.Watch, result: real.TrainResult, size: int) -> None:
        step(self, result, size)
        if result.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(real.Watch, "__call__", interrupt)
        assert real.main(command(root, tmp_path / "parts")) == 130
    assert real.main(command(root, tmp_path / "parts")) == 0
    whole, parts = (torch.load(tmp_path / name / "training.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 4
    for name, value in whole["average"].items():
        assert torch.equal(value, parts["average"][name]), name


@pytest.mark.slow
def test_the_command_validates_logs_and_keeps_the_best(small: None, root: Path, tmp_path: Path) -> None:
    validation = write_validation(tmp_path / "validation")
    output = tmp_path / "out"
    arguments = [*command(root, output), "--validation", str(validation), "--validate-minutes", "0", "--bfloat16"]
    assert real.main(arguments) == 0
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    scores = [line for line in lines if "total" in line]
    assert scores[-1]["step"] == 4
    assert all(0 <= scores[-1][name] <= 100 for name in ("box", "click", "jf", "procedural"))
    model = load_embedded(SAM2Train, config=EMBEDDED_256_CONFIG, weights=output / "latest.safetensors")
    assert sum(parameter.numel() for parameter in model.parameters()) > 5_000_000
    assert (output / "best.safetensors").stat().st_size < 24 * 2**20


def test_wrong_arguments_are_explained(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("128", "100:0"):
        with pytest.raises(SystemExit):
            real.main([*command(root, tmp_path), "--sizes", size])
    assert "multiple of 32" in capsys.readouterr().err
    assert real.main(command(tmp_path / "nothing", tmp_path)) == 1
    assert "people" in capsys.readouterr().err
