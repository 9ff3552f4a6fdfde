"""An assignment through prepare and convert, and through its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.ao.quantization import PlaceholderObserver

from qsam2_ao import convert_qsam2, load_embedded, prepare_qsam2
from qsam2_ao.errors import QConfigError
from qsam2_ao.graph import REGIONS
from qsam2_ao.recipe import layer_qconfig
from qsam2_ao.reporting.coverage import coverage_report
from qsam2_ao.reporting.size import model_size
from qsam2_ao.sensitivity import Assignment, quantizable_layers
from qsam2_ao.sensitivity.assignment import is_first_or_last

FIRST = "image_encoder.trunk.patch_embed.proj"


@pytest.fixture(scope="module")
def assignment(model: Any) -> Assignment:
    """2, 3, 4 and 8 bits in turn for all inner layers."""
    layers = quantizable_layers(model)
    inner = [name for name in layers if not is_first_or_last(name)]
    bits = {name: (2, 3, 4, 8)[k % 4] for k, name in enumerate(inner)}
    size = sum(layer.packed_bytes(bits.get(name, 8)) for name, layer in layers.items())
    return Assignment(bits, loss=0.5, bytes=size, budget=size + 1, metric="sqnr")


@pytest.mark.slow
def test_the_deployed_model_has_those_bits_and_that_size(model: Any, assignment: Assignment, images: list[Any]):
    deployed = convert_qsam2(model, assignment.qconfig(8), images, vrc=None, vrc_regions=(), progress=False)
    rows = {row.name: row for row in coverage_report(deployed).layers if row.target != "float"}
    wanted = {name: assignment.bits.get(name, 8) for name in quantizable_layers(model)}
    assert {name: row.weight_bits for name, row in rows.items()} == wanted
    assert {row.activation_bits for row in rows.values()} == {8}
    assert model_size(deployed).packed_bytes == assignment.bytes <= assignment.budget


@pytest.mark.slow
def test_a_first_layer_that_is_covered_gets_what_it_is_given(model: Any, assignment: Assignment):
    covering = replace(assignment, bits={**assignment.bits, FIRST: 3})
    prepared = prepare_qsam2(model, covering.qconfig(None), vrc=None)
    rows = {row.name: row for row in coverage_report(prepared).layers if row.target != "float"}
    assert rows[FIRST].weight_bits == 3
    assert rows["memory_encoder.mask_downsampler.encoder.0"].weight_bits == 8
    assert {row.activation_bits for row in rows.values()} == {32}


@pytest.mark.parametrize(("activation_bits", "inner", "edge"), [(8, 8, 8), (4, 4, 8), (2, 2, 8)])
def test_bits_of_the_inputs(model: Any, assignment: Assignment, activation_bits: int, inner: int, edge: int):
    recipe = assignment.qconfig(activation_bits)
    assert tuple(recipe) == REGIONS
    for name, wanted in (("obj_ptr_proj.layers.0", inner), (FIRST, edge)):
        found = layer_qconfig(recipe["image_encoder"], name, type(model.get_submodule(name)))
        assert found is not None
        assert found.activation().bits == wanted
    weight_only = layer_qconfig(assignment.qconfig(None)["image_encoder"], FIRST, type(model.get_submodule(FIRST)))
    assert weight_only is not None
    assert weight_only.activation is PlaceholderObserver
    with pytest.raises(QConfigError, match="activations cannot have 1 bits"):
        assignment.qconfig(1)


def test_save_and_load(assignment: Assignment, tmp_path: Path):
    assignment.save(tmp_path / "bits.json")
    assert Assignment.load(tmp_path / "bits.json") == assignment
    assert sum(assignment.counts().values()) == len(assignment.bits)
    assert list(assignment.counts()) == [2, 3, 4, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "else"}, "not an assignment of bits"),
        ({"version": 2}, "version 2 of the format; this qsam2_ao reads version 1"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"bytes": None}, "'bytes' should be a number of bytes"),
        ({"budget": -1}, "'budget' should be a number of bytes"),
        ({"bits": {}}, "one layer at least"),
        ({"bits": {"a": 1}}, "bits of 'a' should be 2 to 8, not 1"),
        ({"bits": {"a": True}}, "bits of 'a' should be 2 to 8, not True"),
        ({"bits": {"a": "3"}}, "bits of 'a' should be 2 to 8"),
        ({"first_last_bits": 9}, "first_last_bits should be 2 to 8"),
        ({"loss": float("nan")}, "'loss' should be a finite number"),
        ({"loss": "small"}, "'loss' should be a finite number"),
        ({"metric": 3}, "'metric' should be a name"),
    ],
)
def test_what_a_file_may_not_say(assignment: Assignment, tmp_path: Path, change: dict[str, Any], message: str):
    path = tmp_path / "bits.json"
    path.write_text(json.dumps({**assignment.to_dict(), **change}))
    with pytest.raises(QConfigError, match=message) as caught:
        Assignment.load(path)
    assert str(path) in str(caught.value)


def test_missing_fields_and_files(assignment: Assignment, tmp_path: Path):
    for field in assignment.to_dict().keys() - {"format", "version"}:
        values = {key: value for key, value in assignment.to_dict().items() if key != field}
        with pytest.raises(QConfigError, match=f"the field '{field}' is missing"):
            Assignment.from_dict(values)
    with pytest.raises(QConfigError, match="No such file"):
        Assignment.load(tmp_path / "absent.json")
    for text in (b"{", b"\xff\xfe", b"[]", b"3"):
        (tmp_path / "bad.json").write_bytes(text)
        with pytest.raises(QConfigError, match=r"bad\.json"):
            Assignment.load(tmp_path / "bad.json")


@pytest.mark.slow
def test_a_model_with_other_layers_is_refused(model: Any, assignment: Assignment):
    assignment.check_model(model)
    more = replace(assignment, bits={**assignment.bits, "image_encoder.trunk.blocks.40.attn.qkv": 2})
    with pytest.raises(QConfigError, match=r"no layer 'image_encoder.trunk.blocks.40.attn.qkv'"):
        more.check_model(model)
    fewer = replace(assignment, bits={n: b for n, b in assignment.bits.items() if n != "obj_ptr_tpos_proj"})
    with pytest.raises(QConfigError, match="no bits for the layer 'obj_ptr_tpos_proj'"):
        fewer.check_model(model)


@pytest.mark.slow
def test_of_a_model_of_another_size_it_is_warned(
    model: Any, assignment: Assignment, caplog: pytest.LogCaptureFixture
) -> None:
    assignment.check_model(model)
    assert not caplog.text
    assignment.check_model(load_embedded(name="embedded-256"))
    assert f"its layers take {assignment.bytes} bytes, and this model's take" in caplog.text
