from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.ao.quantization import QConfigMapping
from torch.ao.quantization.fx.qconfig_mapping_utils import _maybe_adjust_qconfig_for_module_type_or_name

from qsam2_ao.errors import QConfigError
from qsam2_ao.graph import REGIONS
from qsam2_ao.qconfig import PRESETS, layer_qconfig, lsc_qconfig, preset_qconfig, resolve_qconfig

QCONFIGS = (None, *(lsc_qconfig(bits, None) for bits in (2, 3, 4)))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_cover_every_region_with_their_bits(name: str) -> None:
    recipe = preset_qconfig(name)
    assert tuple(recipe) == REGIONS
    qconfig = layer_qconfig(recipe["image_encoder"], "image_encoder.trunk.blocks.0.attn.qkv", nn.Linear(1, 1))
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
    ],
)
def test_first_and_last_layers_have_8_bits_unless_asked_otherwise(layer: str) -> None:
    def bits(first_last_bits: int | None) -> tuple[int, int]:
        recipe = preset_qconfig("w2a4", first_last_bits=first_last_bits)
        qconfig = layer_qconfig(recipe["image_encoder"], layer, nn.Linear(1, 1))
        assert qconfig is not None
        return qconfig.weight().bits, qconfig.activation().bits

    assert bits(None) == (8, 8)
    assert bits(4) == (4, 4)
    assert bits(2) == (2, 4)


def test_a_regions_inner_layers_are_no_exception() -> None:
    mapping = preset_qconfig("w2a8")["image_encoder"]
    for layer in ("image_encoder.trunk.patch_embed.projection", "image_encoder.trunk.blocks.0.mlp.layers.0"):
        qconfig = layer_qconfig(mapping, layer, nn.Linear(1, 1))
        assert qconfig is not None
        assert qconfig.weight().bits == 2


def test_precedence_is_torch_aos() -> None:
    by_name, by_parent, by_regex, by_type, everywhere = (lsc_qconfig(b, None) for b in (2, 3, 4, 5, 8))
    mapping = (
        QConfigMapping()
        .set_global(everywhere)
        .set_object_type(nn.Conv2d, by_type)
        .set_module_name_regex(r".*\.qkv", by_regex)
        .set_module_name("a.b", by_parent)
        .set_module_name("a.b.c.qkv", by_name)
    )
    linear, conv = nn.Linear(1, 1), nn.Conv2d(1, 1, 1)
    assert layer_qconfig(mapping, "a.b.c.qkv", linear) is by_name
    assert layer_qconfig(mapping, "a.b.d.qkv", linear) is by_parent
    assert layer_qconfig(mapping, "z.qkv", linear) is by_regex
    assert layer_qconfig(mapping, "z.proj", conv) is by_type
    assert layer_qconfig(mapping, "z.proj", linear) is everywhere


NAMES = ("", "a", "a.b", "a.b.c", "a.bc", "a.b.c.qkv", "z.qkv", "z")
KINDS: tuple[Any, ...] = (nn.Linear, nn.Conv2d, "qkv")
PATTERNS = ("a", "a.b", r"a\.b\.", ".*qkv", "qkv", "a.b$", "z|q")


@given(st.data())
def test_precedence_is_that_of_torch_aos_own_code(data: st.DataObject) -> None:
    def rules(keys: tuple[Any, ...]) -> dict[Any, Any]:
        return data.draw(st.dictionaries(st.sampled_from(keys), st.sampled_from(QCONFIGS)))

    mapping = QConfigMapping().set_global(data.draw(st.sampled_from(QCONFIGS)))
    for set_rule, keys in (
        (mapping.set_module_name, NAMES),
        (mapping.set_module_name_regex, PATTERNS),
        (mapping.set_object_type, KINDS),
    ):
        for key, qconfig in rules(keys).items():
            set_rule(key, qconfig)
    for name in NAMES[1:]:
        for layer in (nn.Linear(1, 1), nn.Conv2d(1, 1, 1)):
            wanted = _maybe_adjust_qconfig_for_module_type_or_name(mapping, type(layer), name, mapping.global_qconfig)
            assert layer_qconfig(mapping, name, layer) is wanted


def test_every_form_is_accepted() -> None:
    qconfig = lsc_qconfig(4, 8, granularity="group", group_size=32)
    assert tuple(resolve_qconfig("w4a8")) == REGIONS
    assert all(m.global_qconfig is qconfig for m in resolve_qconfig(qconfig).values())
    mapping = QConfigMapping().set_global(qconfig)
    assert all(m is mapping for m in resolve_qconfig(mapping).values())
    mixed = resolve_qconfig({"image_encoder": "w2a8", "mask_decoder": qconfig, "memory_encoder": None})
    assert sorted(mixed) == ["image_encoder", "mask_decoder"]


@pytest.mark.parametrize(
    ("qconfig", "message"),
    [
        ("w1a8", "unknown preset 'w1a8'; the presets are w8a8"),
        ({"encoder": "w4a8"}, "unknown region 'encoder'"),
        ({"image_encoder": None}, "nothing to quantize"),
        ({"image_encoder": {"a": "w4a8"}}, "region 'image_encoder'.*not a mapping"),
        (4, "not int"),
    ],
)
def test_bad_qconfigs_are_refused(qconfig: object, message: str) -> None:
    with pytest.raises(QConfigError, match=message):
        resolve_qconfig(qconfig)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [(1, 8), (9, 8), (4, 3), (4, 16)])
def test_bits_out_of_range_are_refused(settings: tuple[int, int]) -> None:
    with pytest.raises(QConfigError, match="bits"):
        lsc_qconfig(*settings)
