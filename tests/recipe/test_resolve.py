from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.ao.quantization import QConfigMapping
from torch.ao.quantization.fx.qconfig_mapping_utils import _maybe_adjust_qconfig_for_module_type_or_name

from qsam2_ao.errors import GraphTraceError, QConfigError
from qsam2_ao.graph import REGIONS
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.recipe import layer_qconfig, lsc_qconfig, resolve_qconfig, resolve_recipe

QCONFIGS = (None, *(lsc_qconfig(bits, None) for bits in (2, 3, 4)))


def test_every_layer_of_a_model_gets_what_its_regions_mapping_says() -> None:
    model, head = build_embedded(), lsc_qconfig(3, 8)
    mapping = QConfigMapping().set_global(lsc_qconfig(2, 8)).set_object_type(nn.Conv2d, None)
    recipe = resolve_recipe({"image_encoder": mapping, "obj_ptr_proj": head}, model)
    layers = dict(model.named_modules())
    regions = {"image_encoder": nn.Linear, "obj_ptr_proj": (nn.Linear, nn.Conv2d), "obj_ptr_tpos_proj": nn.Linear}
    expected = [
        name
        for name, layer in layers.items()
        for path, kind in regions.items()
        if f"{name}.".startswith(f"{path}.") and isinstance(layer, kind)
    ]
    assert sorted(recipe) == sorted(expected)
    for name, layer in recipe.items():
        assert layer.name == name
        assert name.startswith(layer.part.path)
        assert layer.qconfig is (head if layer.part.region == "obj_ptr_proj" else mapping.global_qconfig)


def test_a_recipe_for_no_layer_or_no_sam2_is_refused() -> None:
    with pytest.raises(QConfigError, match="names no layer"):
        resolve_recipe(QConfigMapping(), build_embedded())
    with pytest.raises(GraphTraceError, match="expected a SAM2 model"):
        resolve_recipe("w4a8", nn.Linear(1, 1))  # type: ignore[arg-type]


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
    linear, conv = nn.Linear, nn.Conv2d
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
        for kind in (nn.Linear, nn.Conv2d):
            wanted = _maybe_adjust_qconfig_for_module_type_or_name(mapping, kind, name, mapping.global_qconfig)
            assert layer_qconfig(mapping, name, kind) is wanted


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
