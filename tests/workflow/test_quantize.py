"""Quantizing in steps: an interruption at any of them changes nothing in the file that comes out."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao import load_qsam2
from qsam2_ao.errors import CheckpointError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage
from qsam2_ao.training.settings import TrainingSettings
from qsam2_ao.workflow import quantize as quantizing
from qsam2_ao.workflow import training as training_workflow
from qsam2_ao.workflow.data import procedural_images
from qsam2_ao.workflow.quantize import QuantizationJob, quantize_model
from qsam2_ao.workflow.training import TrainingData
from qsam2_ao.workspace import Workspace

STAGES = (Stage(0, ((BatchKind(1, 2, 1), 1.0),)),)
JOB = QuantizationJob("w2a8", images=2, training=TrainingSettings(3), seed=5)


@pytest.fixture(scope="module")
def model():
    return build_embedded(SAM2VideoPredictor)


def quantize(model: object, folder: Path) -> Path:
    output = folder / "out.safetensors"
    quantize_model(
        model,
        JOB,
        output,
        Workspace(folder, {}),
        calibration_data=procedural_images(2, 96),
        training=TrainingData(
            ProceduralBatches(STAGES, seed=11).stream(3), list(ProceduralBatches(STAGES, seed=12).stream(1)(0))
        ),
    )
    return output


@pytest.mark.slow
def test_interrupted_runs_end_in_the_same_file(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = quantize(model, tmp_path / "whole")

    # Stop before the training, then in the middle of it, then before packing.
    broken = tmp_path / "broken"
    train, convert = training_workflow.train_qat, quantizing.convert_qsam2

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def stop_in_training(*arguments: object, **options: object) -> object:
        def after_a_step(result: object) -> None:
            if result.step == 2:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

        return train(*arguments, **options, checkpoint_every=1, on_step=after_a_step)  # type: ignore[arg-type]

    for module, name, replacement in (
        (training_workflow, "train_qat", stop),
        (training_workflow, "train_qat", stop_in_training),
        (quantizing, "convert_qsam2", stop),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, replacement)
            with pytest.raises(KeyboardInterrupt):
                quantize(model, broken)
    assert training_workflow.train_qat is train
    assert quantizing.convert_qsam2 is convert

    def refuse(*_: object, **options: object) -> object:
        assert options.get("calibration_data") is None, "calibrated again"
        return prepare(*_, **options)

    prepare = quantizing.prepare_qsam2
    monkeypatch.setattr(quantizing, "prepare_qsam2", refuse)
    again = quantize(model, broken)
    first, second = load_qsam2(whole).state_dict(), load_qsam2(again).state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        other = second[name]
        if hasattr(value, "dequantize") and type(value) is not torch.Tensor:
            assert torch.equal(value.codes, other.codes), name
            value, other = value.scale, other.scale
        assert torch.equal(value, other), name


@pytest.mark.parametrize("content", [b"", b"damaged", b"\x80\x02]q\x00.", pickle.dumps({"state": 3, "info": {}}, 2)])
def test_a_damaged_step_is_named(model, tmp_path: Path, content: bytes):
    work = Workspace(tmp_path, {})
    (work.folder / "w2a8-prepared.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w2a8-prepared\.pt cannot be continued from"):
        quantize(model, tmp_path)
