from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from sam2_runs import assert_identical, images, run_both, run_video
from torch.ao.quantization import QConfig, default_weight_fake_quant, get_default_qat_qconfig

from qsam2_ao import PackedIntxTensor, convert_qsam2, lsc_qconfig, prepare_qsam2
from qsam2_ao.errors import CalibrationError, NonFiniteError, QConfigError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.recipe import quantized_layers
from qsam2_ao.stage import stage_of


def photos() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8))


def train_a_little(prepared: SAM2Base) -> None:
    """Two steps, so that weights, alphas and running ranges are no longer where they started."""
    prepared.train()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=1e-2)
    for seed in range(2):
        optimizer.zero_grad()
        outputs = run_video(prepared, images(1, 96, seed))
        sum((t.float() - 1).square().mean() for t in outputs if t.requires_grad).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def model() -> SAM2Base:
    return build_embedded(SAM2VideoPredictor)


@pytest.fixture(scope="module")
def trained(model: SAM2Base) -> Callable[[str | QConfig], SAM2Base]:
    """A preset's prepared model, trained a little; nothing but its mode may be changed."""

    @cache
    def of(preset: str | QConfig) -> SAM2Base:
        prepared = prepare_qsam2(model, preset, calibration_data=photos(), vrc=None, progress=False)
        train_a_little(prepared)
        return prepared

    return of


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
@pytest.mark.parametrize("preset", ["w8a8", "w4a8", "w3a16", "w2a4", pytest.param(lsc_qconfig(2, 2), id="w2a2")])
def test_a_trained_model_converts_to_the_bit(
    trained: Callable[[str | QConfig], SAM2Base], preset: str | QConfig
) -> None:
    prepared = trained(preset)
    converted = convert_qsam2(prepared)
    batch = images(2, 96, seed=9)
    prepared.eval()
    assert type(converted) is SAM2VideoPredictor
    with torch.no_grad():
        assert_identical(run_both(converted, batch), run_both(prepared, batch))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["w4a8", "w2a4"])
def test_codes_and_ranges_are_those_that_training_learned(trained: Callable[[str], SAM2Base], preset: str) -> None:
    prepared = trained(preset)
    converted = convert_qsam2(prepared)
    prepared.eval()
    for name, layer in quantized_layers(prepared):
        weight = converted.get_submodule(name).weight
        assert isinstance(weight, PackedIntxTensor)
        assert torch.equal(weight.dequantize(), layer.weight_fake_quant(layer.weight)), name
    for record in stage_of(converted).layers:
        learned = prepared.get_submodule(record.part).get_submodule(record.activation)
        deployed = converted.get_submodule(record.part).get_submodule(record.activation)
        scale, zero_point = learned.qparams()
        assert torch.equal(deployed.scale, scale)
        assert torch.equal(deployed.zero_point, zero_point)
        assert float(zero_point) == int(zero_point)


@pytest.mark.slow
def test_the_plan_lists_every_quantized_layer(trained: Callable[[str], SAM2Base]) -> None:
    prepared = trained("w2a4")
    converted = convert_qsam2(prepared)
    records = {record.name: record for record in stage_of(converted).layers}
    assert records.keys() == {name for name, _ in quantized_layers(prepared)}
    first = records["image_encoder.trunk.patch_embed.proj"]
    assert (first.kind, first.bits, first.activation_bits) == ("conv2d", 8, 8)
    inner = records["memory_attention.layers.0.linear1"]
    assert (inner.kind, inner.bits, inner.activation_bits, inner.grid) == ("linear", 2, 4, "midrise")


@pytest.mark.slow
def test_the_prepared_model_is_left_as_it_was(trained: Callable[[str], SAM2Base]) -> None:
    prepared = trained("w4a8").train()
    before = copy.deepcopy(prepared.state_dict())
    convert_qsam2(prepared)
    assert prepared.training
    after = prepared.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.slow
@torch.no_grad()
def test_one_step_is_prepare_and_convert(model: SAM2Base) -> None:
    """And a second one is refused."""
    options = {"vrc": 0.01, "seed": 3, "progress": False}
    recipe = {"image_encoder": "w3a8", "memory_encoder": "w3a8"}
    one = convert_qsam2(model, recipe, photos(), **options)
    two = convert_qsam2(prepare_qsam2(model, recipe, calibration_data=photos(), **options))
    batch = images(1, 96)
    assert_identical(run_video(one, batch), run_video(two, batch))
    with pytest.raises(QConfigError, match="the model is converted already"):
        convert_qsam2(one)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["tensor", "group"])
@torch.no_grad()
def test_every_granularity_converts_to_the_bit(model: SAM2Base, granularity: str) -> None:
    qconfig = lsc_qconfig(3, 8, granularity=granularity, group_size=20 if granularity == "group" else None)
    prepared = prepare_qsam2(model, {"memory_encoder": qconfig}, calibration_data=photos(), vrc=None, progress=False)
    converted = convert_qsam2(prepared)
    assert {record.granularity for record in stage_of(converted).layers} == {granularity}
    batch = images(1, 96)
    assert_identical(run_video(converted, batch), run_video(prepared.eval(), batch))


@pytest.fixture(scope="module")
def encoder_only(model: SAM2Base) -> SAM2Base:
    return prepare_qsam2(model, {"image_encoder": "w4a8"}, calibration_data=photos()[:1], vrc=None, progress=False)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_cast_to_another_dtype_keeps_its_codes(encoder_only: SAM2Base, dtype: torch.dtype) -> None:
    prepared = copy.deepcopy(encoder_only).to(dtype).eval()
    converted = convert_qsam2(prepared)
    as_float32 = convert_qsam2(copy.deepcopy(prepared).float())  # of the rounded weights
    for record in stage_of(converted).layers:
        ours, theirs = (m.get_submodule(record.name).weight for m in (converted, as_float32))
        assert ours.dtype == dtype
        assert torch.equal(ours.unpack(), theirs.unpack()), record.name
        assert torch.equal(ours.scale, theirs.scale), record.name
    x = images(1, 96).to(dtype)
    for name in ("backbone_fpn", "vision_pos_enc"):
        assert_identical(converted.image_encoder(x)[name], prepared.image_encoder(x)[name])


@pytest.mark.slow
def test_a_part_cast_to_another_dtype_keeps_its_own(model: SAM2Base) -> None:
    prepared = prepare_qsam2(model, "w4a16", vrc=None)
    prepared.memory_attention.bfloat16()
    converted = convert_qsam2(prepared)
    assert {p.dtype for p in converted.memory_attention.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in converted.image_encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_aos_quantizers_convert_in_another_dtype(model: SAM2Base, dtype: torch.dtype) -> None:
    qconfig = {"memory_encoder": get_default_qat_qconfig("fbgemm")}
    prepared = prepare_qsam2(model, qconfig, calibration_data=photos(), vrc=None, progress=False).to(dtype)
    converted, as_float32 = convert_qsam2(prepared), convert_qsam2(copy.deepcopy(prepared).float())
    for record in stage_of(converted).layers:
        ours, theirs = (m.get_submodule(record.name).weight for m in (converted, as_float32))
        assert torch.equal(ours.unpack(), theirs.unpack()), record.name


def test_torch_aos_weights_keep_their_codes(model: SAM2Base) -> None:
    qconfig = get_default_qat_qconfig("fbgemm")
    prepared = prepare_qsam2(model, {"memory_encoder": qconfig}, calibration_data=photos(), vrc=None, progress=False)
    converted = convert_qsam2(prepared)
    for name, layer in quantized_layers(prepared):
        layer.weight_fake_quant.disable_observer()
        packed = converted.get_submodule(name).weight
        torch.testing.assert_close(packed.dequantize(), layer.weight_fake_quant(layer.weight), rtol=1e-6, atol=0)


def test_what_was_never_observed_is_named(model: SAM2Base) -> None:
    with pytest.raises(CalibrationError, match=r"memory_encoder\.input_quantizer_0"):
        convert_qsam2(prepare_qsam2(model, {"memory_encoder": "w4a8"}))
    with pytest.raises(CalibrationError, match=r"memory_encoder\.mask_downsampler.*never observed"):
        convert_qsam2(prepare_qsam2(model, {"memory_encoder": get_default_qat_qconfig("x86")}))


def test_diverged_weights_are_named(model: SAM2Base) -> None:
    prepared = prepare_qsam2(model, {"memory_encoder": "w4a16"})
    with torch.no_grad():
        prepared.memory_encoder.out_proj.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"memory_encoder\.out_proj"):
        convert_qsam2(prepared)


def test_a_float_model_needs_a_qconfig(model: SAM2Base) -> None:
    with pytest.raises(QConfigError, match="not prepared; call prepare_qsam2 first"):
        convert_qsam2(model)


@pytest.mark.slow
def test_scales_along_another_dimension_are_refused(model: SAM2Base) -> None:
    weight = default_weight_fake_quant.with_args(
        observer=torch.ao.quantization.PerChannelMinMaxObserver, qscheme=torch.per_channel_symmetric, ch_axis=1
    )
    qconfig = QConfig(activation=torch.ao.quantization.PlaceholderObserver, weight=weight)
    with pytest.raises(QConfigError, match=r"memory_attention\..*dimension 1"):
        prepare_qsam2(model, {"memory_attention": qconfig})
