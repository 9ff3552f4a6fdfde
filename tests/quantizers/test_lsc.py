from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lsc_layers import GRANULARITIES, Layer, deployed, weight_quantizer
from torch import nn
from torch.ao.quantization import (
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
)

from qsam2_ao.errors import CalibrationError, NonFiniteError, QConfigError
from qsam2_ao.quantizers import LSCFakeQuantize, broadcast_qparam, quantize_affine
from qsam2_ao.quantizers.grids import WEIGHT_GRIDS

# --- the grid
# ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    grid=st.sampled_from(WEIGHT_GRIDS),
    granularity=st.sampled_from(GRANULARITIES),
    out=st.integers(1, 5),
    inputs=st.integers(1, 30),
    spread=st.sampled_from([1e-6, 1e-2, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_quantized_weights_lie_on_the_grid(bits, grid, granularity, out, inputs, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inputs, generator=generator) * spread
    quantizer = weight_quantizer(weight, bits, grid=grid, granularity=granularity[0], group_size=granularity[1])
    quantized = quantizer.eval()(weight)
    assert torch.equal(quantized, deployed(quantizer, weight))
    scale, zero_point = (broadcast_qparam(t, tuple(weight.shape), granularity[1]) for t in quantizer.qparams())
    codes = quantize_affine(quantized, scale, zero_point, *quantizer.codes)
    # Quantizing again gives the same codes, and inside the range the error is at most half a step.
    assert torch.equal(codes, quantize_affine(weight, scale, zero_point, *quantizer.codes))
    inside = (codes > quantizer.codes[0]) & (codes < quantizer.codes[1])
    assert bool(((quantized - weight).abs() <= scale * 0.5001 + 1e-6 * spread)[inside].all())
    # Monotone: a larger weight of the same scale never becomes smaller.
    if granularity[0] == "tensor":
        order = weight.flatten().argsort()
        assert bool((quantized.flatten()[order].diff() >= 0).all())


def test_two_bits_have_four_symmetric_levels():
    weight = torch.randn(1, 1000)
    quantizer = weight_quantizer(weight, 2)
    scale, zero_point = quantizer.qparams()
    assert zero_point.item() == 1.5
    levels = (quantizer(weight) / scale).unique()
    assert levels.tolist() == pytest.approx([-1.5, -0.5, 0.5, 1.5])


@given(bits=st.integers(2, 8), shift=st.floats(-3, 3), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_quantized_activations_lie_on_the_grid(bits, shift, seed):
    x = torch.randn(4, 33, generator=torch.Generator().manual_seed(seed)) + shift
    quantizer = LSCFakeQuantize(bits)
    quantizer(x)
    quantizer.eval()
    assert torch.equal(quantizer(x), deployed(quantizer, x))
    assert quantizer(x).unique().numel() <= 2**bits
    assert quantizer(torch.zeros(3)).tolist() == [0.0] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_quantized_in_float32(dtype):
    x = torch.randn(50, dtype=dtype)
    quantizer = LSCFakeQuantize(8)
    out = quantizer(x)
    assert out.dtype == dtype
    assert torch.equal(out, deployed(quantizer, x))


def test_granularities_have_the_contracted_shapes():
    weight = torch.randn(6, 5, 2, 2)
    for settings_, shape in [
        ({"granularity": "tensor"}, (1,)),
        ({"granularity": "channel"}, (6,)),
        ({"granularity": "group", "group_size": 8}, (6, 3)),
    ]:
        scale, zero_point = weight_quantizer(weight, **settings_).qparams()
        assert scale.shape == zero_point.shape == shape
        assert scale.dtype == zero_point.dtype == torch.float32


# --- switches
# ------------------------------------------------------------------------------------------------


def test_torch_ao_switches():
    torch.manual_seed(0)
    layer = Layer()
    layer.weight_fake_quant.initialize(layer.linear.weight)
    x = torch.randn(10, 16)
    layer(x)
    exact = nn.functional.linear(x, layer.linear.weight, layer.linear.bias)
    layer.apply(disable_fake_quant)
    assert torch.equal(layer(x), exact)
    layer.apply(enable_fake_quant)
    assert not torch.equal(layer(x), exact)
    layer.apply(disable_observer)
    frozen = copy.deepcopy(layer.state_dict())
    layer(x * 10).sum().backward()
    for key, value in layer.state_dict().items():
        assert torch.equal(value, frozen[key]), key
    # A frozen range gets a zero gradient, not none: DDP waits for every parameter's.
    assert torch.count_nonzero(layer.weight_fake_quant.log_alpha.grad) == 0
    layer.apply(enable_observer)
    layer(x * 10)
    assert not torch.equal(layer.input_fake_quant.high, frozen["input_fake_quant.high"])


def test_disable_fake_quant_still_observes_in_training_and_is_the_identity_in_eval():
    quantizer = LSCFakeQuantize(8)
    quantizer.disable_fake_quant()
    x = torch.randn(20)
    assert quantizer(x) is x
    assert quantizer.is_initialized
    fresh = LSCFakeQuantize(8).eval()
    fresh.disable_fake_quant()
    assert fresh(x) is x
    assert not fresh.is_initialized


def test_frozen_weight_range_ignores_the_live_weight():
    weight = torch.randn(4, 20)
    quantizer = weight_quantizer(weight)
    scale, _ = quantizer.qparams()
    quantizer.disable_observer()
    assert torch.equal(quantizer.qparams_for(weight * 7)[0], scale)


# --- degenerate input
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", WEIGHT_GRIDS)
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize(
    "weight", [torch.zeros(3, 4), torch.full((3, 4), 0.7), torch.full((3, 1), -2.0), torch.ones(1, 1)]
)
def test_constant_weights_are_reproduced(grid, bits, weight):
    quantizer = weight_quantizer(weight, bits, grid=grid)
    out = quantizer(weight.clone().requires_grad_())
    out.sum().backward()
    torch.testing.assert_close(out.detach(), weight, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(quantizer.log_alpha.grad).all()


@pytest.mark.parametrize("value", [0.0, 3.5, -3.5])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_constant_activations_are_reproduced(value, shape):
    quantizer = LSCFakeQuantize(8)
    x = torch.full(shape, value)
    assert quantizer(x).shape == x.shape
    torch.testing.assert_close(quantizer(x), x)


def test_empty_input_passes_through():
    quantizer = LSCFakeQuantize(8).eval()
    assert quantizer(torch.empty(0, 5)).shape == (0, 5)
    with pytest.raises(CalibrationError, match="empty"):
        LSCFakeQuantize(4, is_weight=True).initialize(torch.empty(0, 5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_input_in_training_names_the_layer_and_spoils_nothing(bad):
    quantizer = LSCFakeQuantize(8, name="neck.convs.1")
    x = torch.randn(10)
    spoiled = torch.cat([x, torch.tensor([bad])])
    with pytest.raises(NonFiniteError, match=r"neck\.convs\.1"):
        quantizer(spoiled)
    quantizer(x)
    before = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(NonFiniteError, match=r"neck\.convs\.1"):
        quantizer(spoiled)
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key
    with pytest.raises(NonFiniteError, match=r"neck\.convs\.1"), quantizer.calibrating():
        quantizer(spoiled)


def test_non_finite_weight_names_the_layer():
    quantizer = weight_quantizer(torch.randn(3, 4), name="attn.proj")
    with pytest.raises(NonFiniteError, match=r"attn\.proj"):
        quantizer(torch.full((3, 4), float("nan")))
    with pytest.raises(NonFiniteError, match=r"attn\.proj.*diverged"):
        quantizer.qparams()


@pytest.mark.parametrize(
    "settings_",
    [
        {"bits": 1, "is_weight": True},
        {"bits": 1},
        {"bits": 4, "is_weight": True, "grid": "log"},
        {"bits": 4, "is_weight": True, "granularity": "block"},
        {"bits": 4, "is_weight": True, "granularity": "group"},
        {"bits": 8, "granularity": "channel"},
        {"bits": 8, "grid": "midrise"},
        {"bits": 8, "momentum": 1.0},
        {"bits": 8, "stats_momentum": -0.1},
    ],
)
def test_bad_settings_are_refused(settings_):
    with pytest.raises(QConfigError):
        LSCFakeQuantize(**settings_)
