"""Layers, their packed sizes and their quantized weights, against what prepare and convert make of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from qsam2_ao import convert_qsam2, prepare_qsam2
from qsam2_ao.calibration import load_images
from qsam2_ao.errors import GraphTraceError
from qsam2_ao.fake_quant import quantized_layers
from qsam2_ao.qconfig import lsc_qconfig
from qsam2_ao.reporting.size import model_size
from qsam2_ao.sensitivity import quantizable_layers
from qsam2_ao.sensitivity.layers import quantized_weight, replaced_weight
from qsam2_ao.sensitivity.measure import _with_grams


@pytest.fixture(scope="module")
def prepared(model: Any) -> Any:
    return prepare_qsam2(model, lsc_qconfig(3, None), vrc=None)


def test_all_layers_that_prepare_quantizes_with_their_real_size(model: Any, prepared: Any):
    layers = quantizable_layers(model)
    deployed = convert_qsam2(prepared)
    assert set(layers) == {plan.name for plan in deployed.qsam2_plan}
    assert {plan.name: (plan.region, plan.shape) for plan in deployed.qsam2_plan} == {
        layer.name: (layer.region, layer.shape) for layer in layers.values()
    }
    assert sum(layer.packed_bytes(3) for layer in layers.values()) == model_size(deployed).packed_bytes
    assert sum(layer.values for layer in layers.values()) == model_size(deployed).packed_values


def test_a_quantized_model_is_refused(prepared: Any):
    for quantized in (prepared, convert_qsam2(prepared)):
        with pytest.raises(GraphTraceError, match="prepared or converted already"):
            quantizable_layers(quantized)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_the_quantized_weight_is_the_one_that_prepare_makes(model: Any, images: list[Any], rounding: str):
    recipe = {"image_encoder": lsc_qconfig(2, None)}
    prepared = prepare_qsam2(model, recipe, calibration_data=images, rounding=rounding, progress=False).eval()
    wanted = {"image_encoder.trunk.patch_embed.proj", "image_encoder.trunk.blocks.0.mlp.layers.0"}
    layers = {name: layer for name, layer in quantizable_layers(model).items() if layer.region == "image_encoder"}
    compared = set()
    for name, gram, n in _with_grams(model, layers, load_images(images), seed=0):
        if name in wanted:
            weight = quantized_weight(name, model.get_submodule(name), 2, gram, n, vrc="auto", rounding=rounding)
            layer = dict(quantized_layers(prepared))[name]
            torch.testing.assert_close(weight, layer.weight_fake_quant(layer.weight).detach(), rtol=0, atol=0)
            assert not torch.equal(weight, model.get_submodule(name).weight)
            compared.add(name)
    assert compared == wanted


def test_a_replaced_weight_comes_back(model: Any):
    layer = copy.deepcopy(model.obj_ptr_tpos_proj)
    before = layer.weight.detach().clone()
    with replaced_weight(layer, torch.zeros_like(before)):
        assert not layer.weight.any()
    assert torch.equal(layer.weight, before)
