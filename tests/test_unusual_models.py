"""Models that are not quite SAM2's own, from prepare_qsam2 to save_qsam2."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import nn

from qsam2_ao import (
    calibrate_activations,
    calibrate_qsam2,
    convert_qsam2,
    equalize_qsam2,
    load_qsam2,
    prepare_qsam2,
    save_qsam2,
)
from qsam2_ao.errors import CalibrationError, CheckpointError, QConfigError
from qsam2_ao.models.config import build_from_config, model_config
from qsam2_ao.models.embedded import build_embedded, load_embedded
from qsam2_ao.sensitivity import measure_sensitivity

PHOTO = [np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)]
LITTLE = {"memory_attention": "w4a16"}


def test_a_head_of_ones_own_stays_in_float_and_cannot_be_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = build_embedded()
    model.head = nn.Linear(64, 4)
    prepared: Any = prepare_qsam2(model, LITTLE, progress=False)
    assert "head: no part of SAM2, so it stays as it is, in float" in caplog.text
    assert "not saved: module head was added" in caplog.text
    assert type(prepared.head) is nn.Linear
    quantized = convert_qsam2(prepared)
    assert torch.equal(quantized.head.weight, model.head.weight)
    with pytest.raises(CheckpointError, match="cannot be saved: module head was added"):
        save_qsam2(quantized, tmp_path / "never.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("qconfig", ["w4a8", LITTLE, {"obj_ptr_proj": "w8a8"}])
def test_the_memory_of_a_model_without_one_is_refused(qconfig: Any) -> None:
    model = build_embedded(num_maskmem=0)
    with pytest.raises(QConfigError, match=r"num_maskmem=0.*(memory_attention|obj_ptr_tpos_proj).*never run"):
        prepare_qsam2(model, qconfig, calibration_data=PHOTO, progress=False)


def test_the_rest_of_a_model_without_a_memory_is_quantized(tmp_path: Path) -> None:
    model = build_embedded(SAM2VideoPredictor, num_maskmem=0)
    quantized = convert_qsam2(model, {"mask_decoder": "w4a8"}, PHOTO, progress=False)
    save_qsam2(quantized, tmp_path / "images.safetensors")
    loaded = load_qsam2(tmp_path / "images.safetensors")
    assert loaded.num_maskmem == 0
    ours, theirs = (m.state_dict()["sam_mask_decoder.conv_s0.weight"].dequantize() for m in (quantized, loaded))
    assert torch.equal(ours, theirs)
    # One channel's scales stand for the rest: the file was read whole.
    name = "sam_mask_decoder.conv_s0.weight"
    ours, theirs = (m.state_dict()[name].dequantize() for m in (quantized, loaded))
    assert torch.equal(ours, theirs)


def test_a_model_made_in_inference_mode_can_be_prepared_and_trained() -> None:
    with torch.inference_mode():
        model = copy.deepcopy(build_embedded())
    assert any(value.is_inference() for value in model.state_dict().values())
    prepared = prepare_qsam2(model, LITTLE, progress=False)
    assert not any(value.is_inference() for value in [*prepared.state_dict().values(), *prepared.parameters()])
    layer = prepared.get_submodule("memory_attention.layers.0.linear1")
    layer(torch.ones(1, 64)).sum().backward()
    with torch.no_grad():
        layer.weight.sub_(layer.weight.grad)
    assert not any(value.is_inference() for value in convert_qsam2(prepared).state_dict().values())


def test_models_built_in_inference_mode_are_made_of_plain_tensors() -> None:
    with torch.inference_mode():
        models = [build_embedded(), load_embedded(), build_from_config(model_config(build_embedded()))]
    assert not any(value.is_inference() for model in models for value in model.state_dict().values())


def test_a_model_compiled_in_place_is_a_model(tmp_path: Path) -> None:
    model = build_embedded()
    model.compile()
    quantized = convert_qsam2(model, LITTLE, progress=False)
    save_qsam2(quantized, tmp_path / "compiled.safetensors")
    assert load_qsam2(tmp_path / "compiled.safetensors").image_size == 96


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_another_dtype_are_cast_first(dtype: torch.dtype) -> None:
    model = build_embedded().to(dtype)
    cast = copy.deepcopy(model).float()
    results = []
    for each in (model, cast):
        calibrated, _ = calibrate_qsam2(each, PHOTO, scope="obj_ptr_proj", progress=False)
        equalized = equalize_qsam2(each, PHOTO, progress=False)
        found = measure_sensitivity(each, PHOTO, layers=["obj_ptr_tpos_proj"], bits=(2,), vrc=None, progress=False)
        results.append((calibrated.state_dict(), equalized.state_dict(), found.records))
    for ours, theirs in zip(results[0][:2], results[1][:2], strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert results[0][2] == results[1][2]
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_a_prepared_model_is_calibrated_before_it_is_cast() -> None:
    prepared = prepare_qsam2(build_embedded(), {"obj_ptr_proj": "w4a8"}, vrc=None, progress=False).bfloat16()
    with pytest.raises(CalibrationError, match="cast it after the calibration"):
        calibrate_activations(prepared, PHOTO, progress=False)
