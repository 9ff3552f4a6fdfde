from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import QConfigMapping, get_default_qat_qconfig_mapping
from torch.ao.quantization.qconfig import default_qat_qconfig

from qsam2_ao import prepare_qsam2
from qsam2_ao.errors import QConfigError
from qsam2_ao.graph import REGIONS
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.recipe import (
    EXCEPTED_LAYERS,
    PRESETS,
    lsc_qconfig,
    preset_qconfig,
    quantized_layers,
    resolve_qconfig,
)
from qsam2_ao.recipe.rules import check_rules

FOUR, EIGHT = lsc_qconfig(4, None), lsc_qconfig(8, None)
QKV = "image_encoder.trunk.blocks.0.attn.qkv"


@pytest.fixture(scope="module")
def model() -> Any:
    return build_embedded()


def four() -> QConfigMapping:
    return QConfigMapping().set_global(FOUR)


UNREAD: list[tuple[QConfigMapping, str]] = [
    (four().set_module_name("image_encoder.trunk.blocks.0.attn.qvk", EIGHT), f"did you mean '{QKV}'"),
    (four().set_module_name("image_encoder.trunk.blocks.0.attn.qvk", None), f"did you mean '{QKV}'"),
    (four().set_module_name("zzz", EIGHT), "'zzz' names no layer of the model, see model.named_modules"),
    (four().set_module_name("", EIGHT), "'' names no layer"),
    (four().set_module_name("image_encoder.trunk.blocks.0.norm1", EIGHT), r"norm1' has no nn\.Linear"),
    (four().set_module_name("sam_prompt_encoder", EIGHT), "'sam_prompt_encoder' has no nn"),
    (four().set_module_name_regex(r"trunk\.", EIGHT), r"'trunk\\\\\.' matches the beginning of no layer"),
    (four().set_module_name_regex(r"trunk\.", None), "matches the beginning of no layer"),
    (four().set_module_name_regex("(", EIGHT), r"'\(' is no regular expression"),
    (four().set_object_type(F.linear, EIGHT), "linear is not quantized"),
    (four().set_object_type("matmul", EIGHT), "matmul is not quantized"),
    (four().set_object_type(torch.matmul, EIGHT), "matmul is not quantized"),
    (four().set_object_type(nn.LayerNorm, EIGHT), "LayerNorm is not quantized.*nn.Linear and nn.Conv2d"),
    (four().set_object_type(nn.ConvTranspose2d, EIGHT), "ConvTranspose2d is not quantized"),
    (
        four().set_module_name_object_type_order("image_encoder.trunk.blocks.0.attn", nn.Linear, 0, EIGHT),
        rf"Linear, 0\) is not read.*Use set_module_name with one of '{QKV}', 'image_encoder.trunk.blocks.0.attn.proj'",
    ),
    (four().set_module_name_object_type_order("", F.linear, 0, None), r"linear, 0\) is not read"),
    (QConfigMapping().set_global("w4a8"), r"set_global has a str \('w4a8'\)"),
    (four().set_module_name(QKV, lsc_qconfig), "has a function"),
    (QConfigMapping.from_dict({"": FOUR, "module_name": [("image_encodr", EIGHT)]}), "did you mean 'image_encoder'"),
]


@pytest.mark.parametrize(("mapping", "message"), UNREAD)
def test_a_rule_that_selects_nothing_or_is_not_read_is_an_error(model, mapping: QConfigMapping, message: str) -> None:
    with pytest.raises(QConfigError, match=message):
        check_rules(resolve_qconfig(mapping), model)
    with pytest.raises(QConfigError, match=message):
        check_rules(resolve_qconfig({"image_encoder": mapping, "mask_decoder": "w4a8"}), model)


@pytest.mark.parametrize(
    "mapping",
    [
        four().set_module_name("image_encoder", EIGHT),
        four().set_module_name(QKV, None),
        four().set_module_name("image_encoder.trunk.blocks.0.norm1", None),  # stays in float, as it asks
        four().set_module_name_regex(r"image_encoder\.trunk\.blocks\.0\.", EIGHT),
        four().set_module_name_regex(r".*norm", None),
        four().set_object_type(nn.Conv2d, EIGHT).set_object_type(nn.LayerNorm, None).set_object_type(F.linear, None),
    ],
)
def test_rules_that_are_followed_pass(model, mapping: QConfigMapping) -> None:
    check_rules({"image_encoder": mapping}, model)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_though_some_models_lack_a_last_layer(model, name: str) -> None:
    check_rules(preset_qconfig(name), model)
    check_rules({"memory_attention": preset_qconfig(name)["memory_attention"]}, model)


def test_one_mapping_serves_several_regions(model) -> None:
    mapping = four().set_module_name("memory_encoder.out_proj", EIGHT).set_object_type(nn.Conv2d, EIGHT)
    check_rules(dict.fromkeys(REGIONS, mapping), model)
    check_rules({"memory_encoder": mapping, "memory_attention": mapping}, model)
    # Mappings of their own with the same rules, as a loop over the regions makes them.
    own = [four().set_module_name("memory_encoder.out_proj", EIGHT) for _ in range(2)]
    check_rules(dict(zip(("memory_attention", "memory_encoder"), own, strict=True)), model)
    with pytest.raises(QConfigError, match=r"memory_encoder\.out_proj' has no nn.* in memory_attention"):
        check_rules({"memory_attention": mapping}, model)
    convolutions = four().set_object_type(nn.Conv2d, EIGHT)
    with pytest.raises(QConfigError, match="there is no Conv2d in memory_attention"):
        check_rules({"memory_attention": convolutions}, model)


def test_default_mapping_of_torch_ao_is_taken_and_what_it_says_of_other_operations_logged(
    model, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "qsam2_ao"):
        check_rules({"obj_ptr_proj": get_default_qat_qconfig_mapping()}, model)
    assert "ConvTranspose2d" in caplog.text
    assert "layer_norm" in caplog.text
    with pytest.raises(QConfigError, match="'obj_ptr_prj' names no layer of the model; did you mean 'obj_ptr_proj'"):
        check_rules({"obj_ptr_proj": get_default_qat_qconfig_mapping().set_module_name("obj_ptr_prj", None)}, model)


def test_prepare_follows_every_rule_as_torch_ao_does(model) -> None:
    mapping = (
        QConfigMapping()
        .set_global(lsc_qconfig(2, None))
        .set_object_type(nn.Conv2d, lsc_qconfig(3, None))
        .set_module_name_regex(r"memory_encoder\.fuser\.layers\.0\.", FOUR)
        .set_module_name_regex(r"memory_encoder\.fuser", lsc_qconfig(5, None))
        .set_module_name("memory_encoder.fuser.layers.1", None)
        .set_module_name("memory_encoder.out_proj", EIGHT)
    )
    prepared = prepare_qsam2(model, {"memory_encoder": mapping}, vrc=None, progress=False)
    bits = {name: layer.weight_fake_quant.bits for name, layer in quantized_layers(prepared)}
    assert bits["memory_encoder.out_proj"] == 8
    assert bits["memory_encoder.pix_feat_proj"] == 3
    assert bits["memory_encoder.fuser.layers.0.dwconv"] == bits["memory_encoder.fuser.layers.0.pwconv1"] == 4
    assert not [name for name in bits if name.startswith("memory_encoder.fuser.layers.1")]
    with pytest.raises(QConfigError, match="did you mean 'memory_encoder'"):
        prepare_qsam2(model, QConfigMapping().set_global(FOUR).set_module_name("memory_encodr", EIGHT))


def test_a_dictionary_of_torch_ao_is_named() -> None:
    with pytest.raises(QConfigError, match="from_dict"):
        resolve_qconfig({"": default_qat_qconfig, "module_name": []})


@pytest.mark.slow
def test_patterns_of_excepted_layers_select_whole_names(model) -> None:
    patterns = QConfigMapping().set_global(FOUR)
    for pattern in EXCEPTED_LAYERS:
        patterns.set_module_name_regex(pattern, EIGHT)
    prepared = prepare_qsam2(model, patterns, vrc=None, progress=False)
    assert {name for name, layer in quantized_layers(prepared) if layer.weight_fake_quant.bits == 8} == {
        "image_encoder.trunk.patch_embed.proj",
        "memory_encoder.mask_downsampler.encoder.0",
        *(f"sam_mask_decoder.output_hypernetworks_mlps.{i}.layers.2" for i in range(4)),
        "sam_mask_decoder.iou_prediction_head.layers.2",
        "sam_mask_decoder.pred_obj_score_head.layers.2",
        *(
            f"sam_mask_decoder.transformer.layers.{i}.cross_attn_image_to_token.{projection}_proj"
            for i in range(2)
            for projection in "qk"
        ),
    }
