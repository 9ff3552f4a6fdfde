from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.ao.quantization import (
    FakeQuantizeBase,
    QConfig,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
)
from torch.utils.checkpoint import checkpoint
from torchao.quantization.pt2e import FakeQuantizeBase as PT2EFakeQuantizeBase

from qsam2_ao.errors import CalibrationError, NonFiniteError, QConfigError
from qsam2_ao.quantizers import LSCFakeQuantize, broadcast_qparam, dequantize_affine, quantize_affine
from qsam2_ao.quantizers.grids import WEIGHT_GRIDS

GRANULARITIES = [("tensor", None), ("channel", None), ("group", 8)]


def weight_quantizer(weight, bits=4, **settings):
    quantizer = LSCFakeQuantize(bits, is_weight=True, **settings)
    quantizer.initialize(weight)
    return quantizer


def deployed(quantizer, x):
    scale, zero_point = quantizer.qparams()
    scale = broadcast_qparam(scale, tuple(x.shape), quantizer.group_size)
    zero_point = broadcast_qparam(zero_point, tuple(x.shape), quantizer.group_size)
    codes = quantize_affine(x, scale, zero_point, *quantizer.codes)
    return dequantize_affine(codes, scale, zero_point).to(x.dtype)


class Layer(nn.Module):
    """A linear layer as torch.ao's QAT modules have it."""

    def __init__(self, bits=4, features=16, **settings):
        super().__init__()
        self.linear = nn.Linear(features, features)
        self.weight_fake_quant = LSCFakeQuantize(bits, is_weight=True, **settings)
        self.input_fake_quant = LSCFakeQuantize(8, name="layer")

    def forward(self, x):
        weight = self.weight_fake_quant(self.linear.weight)
        return nn.functional.linear(self.input_fake_quant(x), weight, self.linear.bias)


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


@given(bits=st.integers(4, 8), shift=st.floats(-3, 3), seed=st.integers(0, 100))
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


# --- learning
# ------------------------------------------------------------------------------------------------


def test_alpha_bar_is_the_running_average_and_alpha_gets_its_gradient_undamped():
    weight = torch.randn(3, 40)
    quantizer = weight_quantizer(weight, 2, momentum=0.75)
    start = quantizer.alpha_bar.clone()
    with torch.no_grad():
        quantizer.log_alpha.add_(0.5)
    quantizer(weight).sum().backward()
    expected = 0.75 * start + 0.25 * start * math.exp(0.5)
    torch.testing.assert_close(quantizer.alpha_bar, expected)

    plain = weight_quantizer(weight, 2, momentum=0.0)
    with torch.no_grad():
        plain.log_alpha.copy_(expected.log())
    plain(weight).sum().backward()
    torch.testing.assert_close(plain.alpha_bar, expected)
    # The same forward range; the gradient to log_alpha differs by the factor d alpha / d log_alpha alone.
    torch.testing.assert_close(
        quantizer.log_alpha.grad / quantizer.alpha.detach(), plain.log_alpha.grad / plain.alpha.detach()
    )


def test_running_statistics_of_activations():
    quantizer = LSCFakeQuantize(8, stats_momentum=0.9)
    first, second = torch.randn(100), torch.randn(100) * 2 + 1
    quantizer(first)
    quantizer(second)
    torch.testing.assert_close(quantizer.mean, (0.9 * first.mean() + 0.1 * second.mean()).reshape(1))
    torch.testing.assert_close(
        quantizer.std, (0.9 * first.std(correction=0) + 0.1 * second.std(correction=0)).reshape(1)
    )
    torch.testing.assert_close(quantizer.low, (0.9 * first.min() + 0.1 * second.min()).reshape(1))
    torch.testing.assert_close(quantizer.high, (0.9 * first.max() + 0.1 * second.max()).reshape(1))


def test_training_the_range_lowers_the_loss():
    torch.manual_seed(0)
    weight, x = torch.randn(8, 32), torch.randn(256, 32)
    quantizer = weight_quantizer(weight, 3, momentum=0.0)
    with torch.no_grad():
        quantizer.log_alpha.sub_(1.0)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (x @ quantizer(weight).T - x @ weight.T).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_range_cannot_leave_the_observed_extremes():
    weight = torch.randn(4, 100)
    quantizer = weight_quantizer(weight, 4)
    with torch.no_grad():
        quantizer.log_alpha.fill_(5.0)
        quantizer.alpha_bar.fill_(math.exp(5.0))
    scale, _ = quantizer.qparams_for(weight)
    torch.testing.assert_close(scale * 15 / 2, weight.abs().amax(1))


@pytest.mark.parametrize(("granularity", "group"), GRANULARITIES)
def test_weight_ranges_follow_the_live_weight_in_eval(granularity, group):
    weight = torch.randn(4, 20)
    quantizer = weight_quantizer(weight, granularity=granularity, group_size=group)
    quantizer(weight)
    before = quantizer.alpha_bar.clone()
    quantizer.eval()
    moved = weight * 3
    out = quantizer(moved)
    assert torch.equal(out, deployed(quantizer, moved))
    torch.testing.assert_close(out, 3 * quantizer(weight), rtol=1e-4, atol=1e-5)
    assert torch.equal(quantizer.alpha_bar, before)


def test_nothing_is_learned_in_eval():
    quantizer = LSCFakeQuantize(8)
    quantizer(torch.randn(100))
    quantizer.eval()
    before = copy.deepcopy(quantizer.state_dict())
    x = (torch.randn(100) * 50).requires_grad_()
    quantizer(x).sum().backward()
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert quantizer.log_alpha.grad.item() == 0.0


def test_gram_matrix_start_lowers_the_output_error():
    torch.manual_seed(0)
    weight, x = torch.randn(8, 32), torch.randn(300, 32) * torch.logspace(-2, 1, 32)
    errors = []
    for gram in (None, x.T @ x):
        quantizer = LSCFakeQuantize(3, is_weight=True)
        quantizer.init_from(weight, gram)
        errors.append((x @ (quantizer(weight) - weight).T).square().sum().item())
    assert errors[1] < errors[0]


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


# --- calibration
# ---------------------------------------------------------------------------------------------


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


# --- degenerate input
# ----------------------------------------------------------------------------------------


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
        {"bits": 3},
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


# --- state
# ---------------------------------------------------------------------------------------------------


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


# --- training loops
# ------------------------------------------------------------------------------------------


def test_activation_checkpointing_updates_statistics_once():
    torch.manual_seed(0)
    plain, recomputed = Layer(), Layer()
    recomputed.load_state_dict(plain.state_dict())
    for _ in range(3):
        x = torch.randn(10, 16, requires_grad=True)
        plain(x).square().sum().backward()
        checkpoint(recomputed, x, use_reentrant=False).square().sum().backward()
    for (key, a), b in zip(plain.state_dict().items(), recomputed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_autocast_bfloat16_trains():
    torch.manual_seed(0)
    layer = Layer()
    x = torch.randn(10, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all(), name
    assert layer.linear.weight.grad.abs().sum() > 0


def test_inference_mode():
    layer = Layer()
    x = torch.randn(10, 16)
    layer(x)
    expected = layer.eval()(x)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x), expected)


def test_state_stays_float32_when_the_model_is_cast():
    layer = Layer()
    x = torch.randn(10, 16)
    layer(x)
    before = [t.clone() for t in layer.input_fake_quant.qparams()]
    layer.bfloat16()
    assert layer.linear.weight.dtype == torch.bfloat16
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    layer.eval()
    layer.input_fake_quant.disable_observer()
    assert {t.dtype for t in layer.weight_fake_quant.qparams()} == {torch.float32}
    assert before[0].dtype == layer.input_fake_quant.log_alpha.dtype == torch.float32


@pytest.mark.slow
def test_compiled_training_step_matches_eager():
    torch.manual_seed(0)
    eager, other = Layer(), Layer()
    x = torch.randn(10, 16)
    eager(x)
    other.load_state_dict(eager.state_dict())
    compiled = torch.compile(other, backend="aot_eager")
    for model in (eager, compiled):
        model(x).square().sum().backward()
    for (name, a), b in zip(eager.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)
