import pytest
import torch
from torch import nn

from qsam2_ao.deploy.inputs import ActivationQuantizer
from qsam2_ao.deploy.int4 import Int4Linear
from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.deploy.portable import lower_packed
from qsam2_ao.deploy.record import LayerRecord
from qsam2_ao.deploy.targets import TARGETS, get_target, lower_to
from qsam2_ao.errors import QConfigError, UnsupportedLayerError
from qsam2_ao.native import why_no_kernels
from qsam2_ao.stage import ModelStage, set_stage, stage_of


def packed(*shape: int, bits: int = 4) -> PackedIntxTensor:
    codes = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(0))
    return PackedIntxTensor.from_codes(codes, torch.full((1,), 0.1), torch.full((1,), 7.5), bits)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_says_what_it_cannot_run(name: str) -> None:
    target = get_target(name)
    assert target.name == name
    assert target.why_not("cpu", nn.LayerNorm(96), packed(48, 96)) is not None
    assert target.why_not("cpu", nn.Linear(96, 48), packed(48, 90)) is not None
    assert target.why_not("cpu", nn.Linear(96, 48)) == "The weight of Linear is a Parameter, not packed codes."


@pytest.mark.parametrize("name", ["auto", "packed", "int4"])
def test_weight_only_layers_run_on_every_target_that_multiplies_floats(name: str) -> None:
    layer = lower_packed(nn.Linear(96, 48), packed(48, 96))
    assert get_target(name).why_not("cpu") is None
    assert get_target(name).why_not("cpu", layer) is None
    assert get_target("int8").why_not("cpu", layer) is not None
    assert get_target("onednn").why_not("cpu", layer) is not None


def test_int8_runs_layers_with_quantized_inputs_and_int4_does_not() -> None:
    layer, quantizer = nn.Linear(96, 48), ActivationQuantizer(0, 255, 0.1)
    assert get_target("int4").why_not("cpu", layer, packed(48, 96), quantizer) == (
        "Its input is quantized, and this target runs weight-only layers."
    )
    assert get_target("int8").why_not("cpu", layer, packed(48, 96), quantizer) == why_no_kernels()
    assert "meta" in str(get_target("int8").why_not("meta"))
    assert "'meta'" in str(get_target("int4").why_not("meta"))


@pytest.mark.parametrize("name", ["packed", "int4"])
def test_a_target_lowers_a_layer_that_it_supports_to_the_same_function(name: str) -> None:
    model = deployed()
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.linear(x, packed(48, 96).dequantize(), model.part.fits.bias)
    lower_to(model, name)
    torch.testing.assert_close(model.part.fits(x), expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(
        QConfigError,
        match="unknown lowering target 'int5'; choose one of auto, int8, onednn, packed, dequantized, int4",
    ):
        get_target("int5")


def record(layer: nn.Module, name: str) -> LayerRecord:
    activation = "q" if name == "integer" else None
    kind = "conv2d" if isinstance(layer, nn.Conv2d) else "linear"
    return LayerRecord("part", "part", name, kind, tuple(layer.weight.shape), 4, "tensor", None, "g", activation, None)


def deployed() -> nn.Module:
    """What a deployed model looks like to the lowering: layers with packed weights and the record of them."""
    model = nn.Module()
    model.part = nn.Module()
    model.part.fits = lower_packed(nn.Linear(96, 48), packed(48, 96))
    model.part.odd = lower_packed(nn.Linear(96, 40), packed(40, 96))
    model.part.conv = lower_packed(nn.Conv2d(8, 16, 3), packed(16, 8, 3, 3))
    model.part.integer = lower_packed(nn.Linear(96, 48), packed(48, 96))
    names = ("fits", "odd", "conv", "integer")
    set_stage(model, ModelStage(layers=tuple(record(model.part.get_submodule(name), name) for name in names)))
    return model


def test_lowering_a_model_says_which_layers_stayed_packed_and_why() -> None:
    model = deployed()
    assert lower_to(model, "int4") is model
    assert isinstance(model.part.fits, Int4Linear)
    for layer in ("odd", "conv", "integer"):
        assert isinstance(model.get_submodule(f"part.{layer}").weight, PackedIntxTensor)
    taken = stage_of(model).targets
    assert taken["part.fits"] == ("int4", None)
    assert {layer: target for layer, (target, _) in taken.items() if layer != "part.fits"} == {
        "part.odd": "packed",
        "part.conv": "packed",
        "part.integer": "packed",
    }
    assert "divisible by 16, not 40" in taken["part.odd"][1]
    assert "nn.Linear only" in taken["part.conv"][1]
    assert "input is quantized" in taken["part.integer"][1]


def test_it_is_warned_where_no_layer_runs_on_what_was_asked_for() -> None:
    model = deployed()
    set_stage(model, ModelStage(layers=tuple(layer for layer in stage_of(model).layers if layer.layer == "integer")))
    with pytest.warns(UserWarning, match="no layer runs on the target 'int4', all stay packed: Its input is quantized"):
        lower_to(model, "int4")


def test_lowering_to_packed_changes_nothing_and_a_second_target_is_refused() -> None:
    model = deployed()
    before = model.part.fits
    lower_to(model, "packed")
    assert model.part.fits is before
    assert set(stage_of(model).targets.values()) == {("packed", None)}
    lower_to(model, "int4")
    with pytest.raises(UnsupportedLayerError, match=r"weight of part\.fits is a Int4OpaqueTensor, not packed codes"):
        lower_to(model, "packed")
