from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, default_per_channel_weight_fake_quant

from qsam2_ao.calibration import calibrate_qsam2
from qsam2_ao.calibration.calibrate import is_calibratable
from qsam2_ao.errors import CalibrationError, NonFiniteError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.quantizers import LSCFakeQuantize

QKV = "image_encoder.trunk.blocks.0.attn.qkv"
NECK = "image_encoder.neck.convs.3.conv"


@pytest.fixture(scope="module")
def model():
    return build_embedded()


def images(count=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 60, 80, generator=generator) for _ in range(count)]


def calibrate(model, data=None, **settings):
    return calibrate_qsam2(model, images() if data is None else data, progress=False, **settings)


@pytest.mark.slow
def test_calibrates_the_image_encoder_of_a_copy(model):
    before = copy.deepcopy(model.state_dict())
    model.train()
    calibrated, report = calibrate(model, bits=3)
    assert model.training
    model.eval()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    expected = [n for n, m in model.named_modules() if n.startswith("image_encoder.") and is_calibratable(m)]
    assert [layer.layer for layer in report.layers] == expected
    assert report.images == 2
    changed = {n for n, value in calibrated.state_dict().items() if not torch.equal(value, before[n])}
    solved = [layer.layer for layer in report.layers if layer.damping > 0]
    assert changed == {f"{name}.{key}" for name in solved for key in ("weight", "bias")}
    assert changed
    assert type(calibrated) is type(model)
    assert all(layer.quantized_error_after <= layer.quantized_error_before for layer in report.layers)


def test_passes_over_the_images_do_not_change_the_result(model):
    scope = "image_encoder.trunk.blocks.2"
    at_once, one = calibrate(model, scope=scope, damping=0.01)
    in_parts, many = calibrate(model, scope=scope, damping=0.01, max_gram_bytes=1)
    assert (one.passes, many.passes) == (1, len(one.layers))
    for (name, a), b in zip(at_once.state_dict().items(), in_parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_other_regions_and_scopes(model):
    scopes = ("memory_attention.layers.0", "obj_ptr_proj")
    _, report = calibrate(model, images(1), scope=scopes)
    assert {layer.layer.split(".")[0] for layer in report.layers} == {"memory_attention", "obj_ptr_proj"}
    assert all(layer.n > 0 for layer in report.layers)
    _, report = calibrate(model, images(1), scope=lambda name: name == NECK)
    assert [layer.layer for layer in report.layers] == [NECK]


def test_bits_and_quantizers_by_layer(model):
    _, two = calibrate(model, bits={QKV: 2, NECK: 8})
    assert [layer.layer for layer in two.layers] == [QKV, NECK]
    errors = {layer.layer: layer.quantized_error_before for layer in two.layers}
    assert errors[QKV] > 100 * errors[NECK]
    _, given = calibrate(
        model,
        quantizers={
            QKV: LSCFakeQuantize.with_args(bits=2, is_weight=True),
            NECK: default_per_channel_weight_fake_quant,
        },
    )
    assert given.layers[0].quantized_error_before == pytest.approx(errors[QKV])
    assert isinstance(default_per_channel_weight_fake_quant(), FakeQuantize)
    assert 0 < given.layers[1].quantized_error_before < 1e-3


def test_second_run_gives_the_same_result(model):
    first, second = (calibrate(model, bits={QKV: 4})[0].state_dict() for _ in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_nothing_in_scope_and_unknown_layers_are_refused(model):
    with pytest.raises(CalibrationError, match="scope"):
        calibrate(model, scope="image_decoder")
    with pytest.raises(CalibrationError, match="no_such_layer"):
        calibrate(model, bits={"no_such_layer": 4})


def test_non_finite_activations_name_the_layer(model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.image_encoder.trunk.blocks[0].norm1.bias[0] = float("inf")
    with pytest.raises(NonFiniteError, match=QKV.replace(".", r"\.")):
        calibrate(broken, images(1), bits={QKV: 4})


def test_what_can_be_calibrated():
    assert is_calibratable(nn.Linear(3, 4))
    assert is_calibratable(nn.Conv2d(3, 4, 1))
    for conv in (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(3, 4, 1, stride=2)):
        assert not is_calibratable(conv)
