"""Layers, their packed sizes and their quantized weights, against what prepare and convert make of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from qsam2_ao import convert_qsam2, prepare_qsam2
from qsam2_ao.calibration import load_images
from qsam2_ao.errors import GraphTraceError
from qsam2_ao.recipe import lsc_qconfig, quantized_layers
from qsam2_ao.reporting.size import model_size
from qsam2_ao.sensitivity import quantizable_layers
from qsam2_ao.sensitivity.layers import quantized_layer, replaced_parameters
from qsam2_ao.sensitivity.measure import _with_inputs
from qsam2_ao.stage import stage_of


@pytest.fixture(scope="module")
def prepared(model: Any) -> Any:
    return prepare_qsam2(model, lsc_qconfig(3, None), vrc=None)


@pytest.mark.slow
def test_all_layers_that_prepare_quantizes_with_their_real_size(model: Any, prepared: Any):
    layers = quantizable_layers(model)
    deployed = convert_qsam2(prepared)
    assert set(layers) == {record.name for record in stage_of(deployed).layers}
    assert {record.name: (record.region, record.shape) for record in stage_of(deployed).layers} == {
        layer.name: (layer.region, layer.shape) for layer in layers.values()
    }
    assert sum(layer.packed_bytes(3) for layer in layers.values()) == model_size(deployed).packed_bytes
    assert sum(layer.values for layer in layers.values()) == model_size(deployed).packed_values


def test_a_quantized_model_is_refused(prepared: Any):
    for quantized in (prepared, convert_qsam2(prepared)):
        with pytest.raises(GraphTraceError, match="prepared or converted already"):
            quantizable_layers(quantized)


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_the_quantized_layer_is_the_one_that_prepare_makes(model: Any, images: list[Any], rounding: str):
    recipe = {"image_encoder": lsc_qconfig(2, None)}
    prepared = prepare_qsam2(model, recipe, calibration_data=images, rounding=rounding, progress=False).eval()
    wanted = {"image_encoder.trunk.patch_embed.proj", "image_encoder.trunk.blocks.0.mlp.layers.0"}
    layers = {name: layer for name, layer in quantizable_layers(model).items() if layer.region == "image_encoder"}
    compared = set()
    for name, inputs in _with_inputs(model, layers, load_images(images), seed=0):
        if name in wanted:
            original = model.get_submodule(name)
            quantized = quantized_layer(name, original, 2, inputs, vrc="auto", rounding=rounding)
            layer = dict(quantized_layers(prepared))[name]
            torch.testing.assert_close(quantized.weight, layer.weight_fake_quant(layer.weight), rtol=0, atol=0)
            assert torch.equal(quantized.bias, layer.bias)
            assert not torch.equal(quantized.weight, original.weight)
            # Only where inputs are known can the bias make up for anything.
            assert torch.equal(quantized.bias, original.bias) == (inputs is None)
            compared.add(name)
    assert compared == wanted


def test_replaced_parameters_come_back(model: Any):
    layer, other = copy.deepcopy(model.obj_ptr_tpos_proj), copy.deepcopy(model.obj_ptr_tpos_proj)
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        other.weight.zero_()
        other.bias.add_(1)
    with replaced_parameters(layer, other):
        assert not layer.weight.any()
        assert torch.equal(layer.bias, before["bias"] + 1)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
