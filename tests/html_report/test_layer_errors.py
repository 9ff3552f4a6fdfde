"""What each layer adds to the error, and what it is clipped to."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base

from qsam2_ao.calibration.images import load_images
from qsam2_ao.errors import QSAM2Error
from qsam2_ao.evaluation.agreement import sqnr
from qsam2_ao.html_report.layer_errors import input_clip, layer_errors
from qsam2_ao.html_report.weights import layer_weights
from qsam2_ao.stage import stage_of


@pytest.fixture(scope="module")
def errors(quantized: SAM2Base, reference: SAM2Base, images):
    return {error.name: error for error in layer_errors(quantized, reference, images)}


def test_every_quantized_layer_has_its_error(errors, quantized: SAM2Base):
    assert list(errors) == [record.name for record in stage_of(quantized).layers]
    assert all(error.so_far is not None and math.isfinite(error.so_far) for error in errors.values())
    assert sum(error.own > error.so_far for error in errors.values()) > 0.9 * len(errors), "errors add up"


def test_the_first_layers_error_is_that_of_its_weights_and_input(
    errors, quantized: SAM2Base, reference: SAM2Base, images
):
    error = errors["image_encoder.trunk.patch_embed.proj"]
    assert error.own == pytest.approx(error.so_far), "nothing is before it"
    layer = reference.image_encoder.trunk.patch_embed.proj
    quantizer = quantized.image_encoder.input_quantizer_0
    packed = quantized.image_encoder.trunk.patch_embed.proj
    x = next(load_images(images).batches(reference, 2))
    expected = sqnr(
        layer(x), F.conv2d(quantizer(x), packed.weight.dequantize(), packed.bias, layer.stride, layer.padding)
    )
    assert error.own == pytest.approx(expected, abs=1.5), "of these images, also moved and flipped"
    low, high = error.clip
    assert (low, high) == input_clip(quantizer)
    codes = quantizer(torch.tensor([-1e9, 1e9]))
    torch.testing.assert_close(torch.tensor([low, high]), codes)


def test_a_spoilt_layer_is_pointed_at(quantized: SAM2Base, reference: SAM2Base, images, errors):
    spoilt = copy.deepcopy(quantized)
    layer = spoilt.image_encoder.trunk.blocks[3].attn.qkv
    layer.bias.data += 1.0
    found = {error.name: error for error in layer_errors(spoilt, reference, images, max_images=1)}
    name = "image_encoder.trunk.blocks.3.attn.qkv"
    assert min(found, key=lambda each: found[each].own) == name
    assert found["image_encoder.trunk.blocks.2.attn.qkv"].own > found[name].own + 10


def test_models_that_do_not_belong_together(quantized: SAM2Base, reference: SAM2Base, images):
    from qsam2_ao.workflow.models import load_model

    with pytest.raises(QSAM2Error, match="name the model that was quantized"):
        layer_errors(quantized, load_model("embedded-256"), images)
    with pytest.raises(QSAM2Error, match="this one is in float"):
        layer_errors(reference, reference, images)


def test_weights_and_the_ranges_that_they_are_clipped_to(quantized: SAM2Base, reference: SAM2Base):
    record = next(r for r in stage_of(quantized).layers if r.name == "image_encoder.trunk.blocks.3.attn.qkv")
    found = layer_weights(quantized, reference, record)
    weight = reference.image_encoder.trunk.blocks[3].attn.qkv.weight
    assert found.bits == 4
    assert float(found.before.std()) == pytest.approx(float(weight.detach().std()), rel=0.05)
    low, high = found.limits_after.low[0], found.limits_after.high[2]
    assert low - 1e-6 <= float(found.after.min()) < 0 < float(found.after.max()) <= high + 1e-6
    assert found.limits_before.high[1] == pytest.approx(found.limits_after.high[1], rel=0.5)
