"""What calibration makes of trained models: ranges of their inputs, biases, and weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from sam2_runs import images, photos

from qsam2_ao import calibrate_activations, lsc_qconfig, prepare_qsam2
from qsam2_ao.calibration import load_images
from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.models.embedded import load_embedded
from qsam2_ao.recipe import quantized_layers

pytestmark = pytest.mark.slow


def with_an_offset() -> SAM2Base:
    """A model with a channel of its image features that is large all the time, as those of vision transformers."""
    model = load_embedded(SAM2VideoPredictor)
    with torch.no_grad():
        model.image_encoder.neck.convs[0].conv.bias[3] -= 60.0
        model.image_encoder.neck.convs[1].conv.bias[3] -= 60.0
    return model.eval()


def test_ranges_started_anew_take_their_corrections_along() -> None:
    float_model = with_an_offset()
    recipe = {"memory_encoder": lsc_qconfig(8, 4)}
    once = prepare_qsam2(float_model, recipe, calibration_data=photos(), vrc=None, progress=False)
    again = copy.deepcopy(once)
    calibrate_activations(again, photos(seed=7), progress=False)
    calibrate_activations(again, photos(), progress=False)
    bias = once.memory_encoder.pix_feat_proj.bias
    assert float((bias - float_model.memory_encoder.pix_feat_proj.bias).abs().max()) > 0.5
    # Means over other photographs are a little different.
    torch.testing.assert_close(again.memory_encoder.pix_feat_proj.bias, bias, rtol=0, atol=0.02)


def test_a_channel_that_is_always_large_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    float_model = with_an_offset()
    masks = torch.randn(2, 1, 96, 96) * 10
    features = float_model.image_encoder(images(2, 96))["vision_features"].detach()
    wanted = float_model.memory_encoder(features, masks)["vision_features"]
    errors = []
    for noticeable in (float("inf"), 0.05):
        monkeypatch.setattr("qsam2_ao.calibration.input_ranges._NOTICEABLE", noticeable)
        ours = prepare_qsam2(
            float_model, {"memory_encoder": lsc_qconfig(8, 4)}, calibration_data=photos(4), vrc=None, progress=False
        )
        found = ours.eval().memory_encoder(features, masks)["vision_features"]
        errors.append(float((found - wanted).square().mean()))
    assert errors[1] < 0.6 * errors[0]


def test_gptq_puts_weights_near_their_codes_and_brings_the_output_nearer() -> None:
    model = load_embedded()
    frames = [generate_sequence("train", k, num_frames=1).frames[0] for k in range(12)]
    unseen = torch.cat(list(load_images(frames[8:]).batches(model, 4)))
    wanted = model.image_encoder(unseen)["backbone_fpn"][-1]
    errors = {}
    for rounding in ("nearest", "gptq"):
        options = {"calibration_data": frames[:8], "rounding": rounding, "progress": False}
        prepared = prepare_qsam2(model, {"image_encoder": "w2a16"}, **options).eval()
        with torch.no_grad():
            errors[rounding] = float((prepared.image_encoder(unseen)["backbone_fpn"][-1] - wanted).norm())
    assert errors["gptq"] < 0.9 * errors["nearest"]
    layer = dict(quantized_layers(prepared))["image_encoder.trunk.blocks.3.mlp.layers.0"]
    on_codes = layer.weight_fake_quant(layer.weight)
    steps = (layer.weight - on_codes).abs() / layer.weight_fake_quant.qparams()[0][:, None]
    assert float(steps.max()) < 0.25 + 1e-4


@torch.no_grad()
def test_massive_activations_that_float_does_not_feel_are_not_felt_when_quantized() -> None:
    model, data = load_embedded(), [generate_sequence("train", k, num_frames=1).frames[0] for k in range(2)]
    frames = torch.cat(list(load_images(data).batches(model, 2)))
    wanted = model.image_encoder(frames)["backbone_fpn"]

    def errors(offset: float, **options: Any) -> list[float]:
        moved = copy.deepcopy(model)
        for block in moved.image_encoder.trunk.blocks:
            channels = slice(0, 3)
            block.norm2.bias[channels] += offset
            block.mlp.layers[0].bias -= offset * block.mlp.layers[0].weight[:, channels].sum(1)
        recipe = {"image_encoder": lsc_qconfig(4, None)}
        quantized = prepare_qsam2(moved, recipe, calibration_data=data, progress=False, **options).eval()
        found = quantized.image_encoder(frames)["backbone_fpn"]
        return [float((x - y).square().sum() / y.square().sum()) for x, y in zip(found, wanted, strict=True)]

    for options in ({"vrc": None}, {"vrc": "auto"}):
        for massive, plain in zip(errors(300.0, **options), errors(0.0, **options), strict=True):
            assert massive < 1.3 * plain
