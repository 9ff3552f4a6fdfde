from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from lsc_layers import GRANULARITIES, Layer, deployed
from torch import nn
from torch.ao.quantization import (
    FakeQuantizeBase,
    QConfig,
)
from torchao.quantization.pt2e import FakeQuantizeBase as PT2EFakeQuantizeBase

from qsam2_ao.errors import CalibrationError
from qsam2_ao.quantizers import LSCFakeQuantize

# --- calibration
# ------------------------------------------------------------------------------------------------


def test_eval_before_any_data_names_the_layer():
    quantizer = LSCFakeQuantize(8, name="trunk.blocks.0.attn.qkv").eval()
    with pytest.raises(CalibrationError, match=r"trunk\.blocks\.0\.attn\.qkv.*calibrat"):
        quantizer(torch.randn(3))
    with pytest.raises(CalibrationError, match=r"trunk\.blocks\.0\.attn\.qkv"):
        quantizer.qparams()


def test_calibrating_passes_through_and_uses_all_batches():
    quantizer = LSCFakeQuantize(8).eval()
    batches = [torch.randn(1000), torch.randn(50) * 3 + 2, torch.empty(0, 4)]
    with quantizer.calibrating():
        for batch in batches:
            assert quantizer(batch) is batch
    whole = torch.cat([batch.flatten() for batch in batches])
    torch.testing.assert_close(quantizer.mean, whole.mean().reshape(1))
    torch.testing.assert_close(quantizer.std, whole.std(correction=0).reshape(1))
    assert (quantizer.low.item(), quantizer.high.item()) == (whole.min().item(), whole.max().item())
    best = (quantizer(whole) - whole).square().mean()
    for factor in (0.7, 0.85, 1.15, 1.4):
        other = copy.deepcopy(quantizer)
        other.alpha_bar.mul_(factor)
        assert best <= 1.05 * (other(whole) - whole).square().mean()


def test_calibration_keeps_a_bounded_sample():
    quantizer = LSCFakeQuantize(8)
    with quantizer.calibrating():
        for _ in range(40):
            quantizer(torch.randn(20_000))
        assert sum(part.numel() for part in quantizer._calibration.samples) <= 1 << 18
    assert quantizer.is_initialized


def test_calibrating_without_data_leaves_the_quantizer_alone():
    quantizer = LSCFakeQuantize(8)
    with quantizer.calibrating():
        pass
    assert not quantizer.is_initialized


def test_weights_are_not_calibrated_on_batches():
    with (
        pytest.raises(CalibrationError, match="initialize"),
        LSCFakeQuantize(4, is_weight=True).calibrating(),
    ):
        pass


# --- state
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("granularity", "group"), GRANULARITIES)
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_loads_strictly_into_a_fresh_module(granularity, group, assign):
    torch.manual_seed(0)
    trained = Layer(granularity=granularity, group_size=group)
    trained(torch.randn(10, 16))
    fresh = Layer(granularity=granularity, group_size=group)
    result = fresh.load_state_dict(trained.state_dict(), strict=True, assign=assign)
    assert not result.missing_keys
    x = torch.randn(5, 16)
    assert torch.equal(fresh.eval()(x), trained.eval()(x))
    assert isinstance(fresh.weight_fake_quant.log_alpha, nn.Parameter)


def test_loading_keeps_the_parameter_that_an_optimizer_holds():
    trained, fresh = Layer(), Layer()
    trained(torch.randn(10, 16))
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
    fresh.load_state_dict(trained.state_dict())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert id(fresh.weight_fake_quant.log_alpha) in held


def test_state_of_another_shape_or_granularity_is_refused():
    trained = Layer()
    trained(torch.randn(10, 16))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Layer(granularity="group", group_size=8).load_state_dict(trained.state_dict())
    wider = Layer(features=17)
    wider.weight_fake_quant.initialize(wider.linear.weight)
    with pytest.raises(RuntimeError, match="size mismatch"):
        wider.load_state_dict(trained.state_dict())
    incomplete = trained.state_dict()
    del incomplete["input_fake_quant.high"]
    with pytest.raises(RuntimeError, match=r"Missing.*input_fake_quant\.high"):
        Layer().load_state_dict(incomplete)


def test_deepcopy_pickle_and_torch_save():
    layer = Layer()
    x = torch.randn(10, 16)
    layer(x)
    expected = layer.eval()(x)
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stored, weights_only=False),
    ):
        assert torch.equal(twin(x), expected)
        twin.train()(x * 5)
    assert torch.equal(layer(x), expected)


def test_qconfig_members_and_torch_ao_attributes():
    qconfig = QConfig(
        activation=LSCFakeQuantize.with_args(bits=8),
        weight=LSCFakeQuantize.with_args(bits=2, is_weight=True),
    )
    weight = qconfig.weight(factory_kwargs={"device": "cpu", "dtype": torch.float32})
    activation = qconfig.activation()
    for quantizer in (weight, activation):
        assert isinstance(quantizer, FakeQuantizeBase)
        assert isinstance(quantizer, PT2EFakeQuantizeBase)
    assert (weight.dtype, weight.qscheme, weight.ch_axis) == (torch.qint8, torch.per_channel_symmetric, 0)
    assert (activation.dtype, activation.qscheme) == (torch.quint8, torch.per_tensor_affine)
    assert "bits=2, grid=midrise, granularity=channel" in repr(weight)
    assert "group_size=4" in repr(LSCFakeQuantize(4, is_weight=True, granularity="group", group_size=4))


def test_torch_ao_qat_linear_takes_it():
    qconfig = QConfig(
        activation=LSCFakeQuantize.with_args(bits=8),
        weight=LSCFakeQuantize.with_args(bits=4, is_weight=True),
    )
    linear = nn.Linear(8, 4)
    linear.qconfig = qconfig
    qat = torch.ao.nn.qat.Linear.from_float(linear)
    x = torch.randn(3, 8)
    out = qat(x)
    quantized = deployed(qat.weight_fake_quant, linear.weight.detach())
    torch.testing.assert_close(out, nn.functional.linear(x, quantized, linear.bias))
