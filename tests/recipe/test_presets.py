from __future__ import annotations

import pytest
from torch import nn

from qsam2_ao.errors import QConfigError
from qsam2_ao.graph import REGIONS
from qsam2_ao.recipe import PRESETS, layer_qconfig, lsc_qconfig, preset_qconfig


@pytest.mark.parametrize("name", PRESETS)
def test_presets_cover_every_region_with_their_bits(name: str) -> None:
    recipe = preset_qconfig(name)
    assert tuple(recipe) == REGIONS
    qconfig = layer_qconfig(recipe["image_encoder"], "image_encoder.trunk.blocks.0.attn.qkv", nn.Linear)
    assert qconfig is not None
    assert qconfig.weight().bits == PRESETS[name].weight_bits
    assert getattr(qconfig.activation(), "bits", None) == PRESETS[name].activation_bits


@pytest.mark.parametrize(
    "layer",
    [
        "image_encoder.trunk.patch_embed.proj",
        "sam_mask_decoder.output_hypernetworks_mlps.2.layers.2",
        "sam_mask_decoder.pred_obj_score_head",
        "sam_mask_decoder.iou_prediction_head.layers.2",
        "memory_encoder.mask_downsampler.encoder.0",
        "sam_mask_decoder.transformer.layers.1.cross_attn_image_to_token.q_proj",
    ],
)
def test_excepted_layers_have_8_bits_unless_asked_otherwise(layer: str) -> None:
    def bits(first_last_bits: int | None) -> tuple[int, int]:
        recipe = preset_qconfig("w2a4", first_last_bits=first_last_bits)
        qconfig = layer_qconfig(recipe["image_encoder"], layer, nn.Linear)
        assert qconfig is not None
        return qconfig.weight().bits, qconfig.activation().bits

    assert bits(None) == (8, 8)
    assert bits(4) == (4, 4)
    assert bits(2) == (2, 4)


def test_fewer_bits_at_the_ends_than_everywhere_are_refused() -> None:
    with pytest.raises(QConfigError, match="fewer than the 8 that w8a8 has everywhere"):
        preset_qconfig("w8a8", first_last_bits=7)


def test_a_regions_inner_layers_are_no_exception() -> None:
    mapping = preset_qconfig("w2a8")["image_encoder"]
    for layer in ("image_encoder.trunk.patch_embed.projection", "image_encoder.trunk.blocks.0.mlp.layers.0"):
        qconfig = layer_qconfig(mapping, layer, nn.Linear)
        assert qconfig is not None
        assert qconfig.weight().bits == 2


@pytest.mark.parametrize("settings", [(1, 8), (9, 8), (4, 1), (4, 16)])
def test_bits_out_of_range_are_refused(settings: tuple[int, int]) -> None:
    with pytest.raises(QConfigError, match="bits"):
        lsc_qconfig(*settings)
