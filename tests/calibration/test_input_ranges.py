from __future__ import annotations

import copy
import math

import pytest
import torch
from data_parallel import run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qsam2_ao.calibration.input_ranges import InputRows, fit_to_outputs
from qsam2_ao.quantizers import LSCFakeQuantize


def read_by(bias=True, features=16, seed=0):
    torch.manual_seed(seed)
    layer = nn.Linear(features, 8, bias=bias)
    layer.weight_fake_quant = LSCFakeQuantize(8, is_weight=True)
    layer.weight_fake_quant.initialize(layer.weight)
    return layer


def started(rows, bits=4):
    quantizer = LSCFakeQuantize(bits)
    with quantizer.calibrating():
        quantizer(rows)
    return quantizer.eval()


def inputs(offset, rows=512, features=16, seed=0):
    x = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))
    x[:, 3] = x[:, 3] / 10 + offset
    return x


@torch.no_grad()
def errors(layer, quantizer, rows, reference):
    """Of the output: what varies, relative to the output's own, and the largest mean; in double precision."""
    weight = layer.weight_fake_quant(layer.weight).double()
    own = quantizer(rows).double() @ weight.T + (0 if layer.bias is None else layer.bias.double())
    wanted = rows.double() @ weight.T + (0 if reference is None else reference.double())
    error = own - wanted
    varying = (error - error.mean(0)).square().sum() / (wanted - wanted.mean(0)).square().sum()
    return float(varying), float(error.mean(0).abs().max())


@pytest.mark.parametrize("conv", [False, True])
def test_a_channel_that_is_always_large_is_clipped_and_the_bias_makes_up_for_it(conv):
    rows, layer = inputs(-60.0), read_by()
    if conv:
        conv_layer = nn.Conv2d(16, 8, 1)
        conv_layer.load_state_dict({"weight": layer.weight.detach()[:, :, None, None], "bias": layer.bias.detach()})
        conv_layer.weight_fake_quant = layer.weight_fake_quant
    quantizer, bias = started(rows), layer.bias.detach().clone()
    before, _ = errors(layer, quantizer, rows, bias)
    fit_to_outputs(quantizer, rows, [conv_layer if conv else layer])
    if conv:
        layer.bias = conv_layer.bias
    after, mean = errors(layer, quantizer, rows, bias)
    assert after < before / 10
    assert mean < 1e-4
    again, _ = errors(layer, quantizer, inputs(-60.0, seed=1), bias)
    assert again < before / 5, "on rows that it has not seen"


def test_without_a_bias_the_mean_counts():
    rows, layer = inputs(-60.0), read_by(bias=False)
    quantizer = started(rows)
    alpha = quantizer.alpha.clone()
    fit_to_outputs(quantizer, rows, [layer])
    assert quantizer.alpha > 0.8 * alpha  # clipped, the channel would be missed


def test_all_layers_that_read_it_are_asked():
    rows = inputs(-60.0)
    clipping, keeping = read_by(), read_by(bias=False)

    def alpha(*layers):
        quantizer = started(rows)
        fit_to_outputs(quantizer, rows, [copy.deepcopy(layer) for layer in layers])
        return float(quantizer.alpha)

    assert alpha(clipping) < alpha(clipping, keeping) == alpha(keeping, clipping) < alpha(keeping)


@settings(deadline=None, max_examples=25)
@given(
    offset=st.floats(-100, 100),
    bits=st.integers(4, 8),
    seed=st.integers(0, 5),
    training=st.booleans(),
    others=st.integers(0, 2),
)
def test_outputs_are_never_worse_and_their_mean_is_kept(offset, bits, seed, training, others):
    rows = inputs(offset, seed=seed)
    layers = [read_by(seed=seed + k) for k in range(1 + others)]
    quantizer = started(rows, bits).train(training)
    biases = [layer.bias.detach().clone() for layer in layers]
    start = copy.deepcopy(quantizer).eval()
    fit_to_outputs(quantizer, rows, layers)
    assert quantizer.training == training
    quantizer.eval()
    before, after = (
        [errors(layer, q, rows, bias) for layer, bias in zip(layers, biases, strict=True)] for q in (start, quantizer)
    )
    assert sum(varying for varying, _ in after) <= sum(varying for varying, _ in before) * (1 + 1e-4)
    assert max(mean for _, mean in after) < 1e-3
    torch.testing.assert_close(quantizer.alpha_bar, quantizer.alpha.detach())


@pytest.mark.parametrize("count", [0, 1, 63])
def test_nothing_is_changed_with_few_rows(count):
    rows, layer = inputs(-60.0), read_by()
    quantizer = started(rows)
    before = copy.deepcopy(quantizer.state_dict()), copy.deepcopy(layer.state_dict())
    fit_to_outputs(quantizer, rows[:count] if count else torch.empty(0, 0), [layer])
    after = quantizer.state_dict(), layer.state_dict()
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(new[name], value) for name, value in old.items())


def test_constant_outputs_have_no_error_to_choose_by():
    rows, layer = torch.ones(80, 16), read_by()
    quantizer = started(rows)
    fit_to_outputs(quantizer, rows, [layer])
    assert torch.isfinite(layer.bias).all()
    assert torch.isfinite(quantizer.alpha).all()


@pytest.mark.parametrize(("channels", "tokens", "calls"), [(24, 50, 400), (2048, 8, 400), (4608, 500, 200)])
def test_rows_are_few_of_all_calls_and_of_all_places(channels, tokens, calls):
    sample = InputRows(-1)
    sample.add(torch.empty(0, channels))
    places, again = torch.arange(tokens).float(), InputRows(-1)
    for call in range(calls):
        x = torch.zeros(tokens, channels)
        x[:, 0], x[:, 1] = call, places
        sample.add(x)
        if call == calls // 2:
            again.go_on(copy.deepcopy(sample.progress()), torch.device("cpu"))
        elif call > calls // 2:
            again.add(x)
    rows = sample.sample()
    assert torch.equal(again.sample(), rows)
    most = max((1 << 18) // channels, 128)
    assert rows.shape == (min(most, calls * tokens), channels)
    for found, count in ((rows[:, 0], calls), (rows[:, 1], tokens)):
        quarters = torch.bincount((found * 4 / count).long(), minlength=4)
        assert 0.15 < float(quarters.min() / len(rows)) <= float(quarters.max() / len(rows)) < 0.35


@pytest.mark.parametrize("shape", [(2, 24, 5, 10), (24, 10, 10)])
def test_rows_of_a_convolution_are_its_pixels(shape):
    sample, x = InputRows(-3), torch.arange(math.prod(shape)).reshape(shape).float()
    sample.add(x)
    pixels = {tuple(row) for row in x.movedim(-3, -1).reshape(-1, 24).tolist()}
    assert {tuple(row) for row in sample.sample().tolist()} <= pixels


def test_a_row_is_a_token():
    sample = InputRows(-3)
    x = torch.arange(2 * 3 * 4).reshape(1, 2, 3, 4).float()
    sample.add(x)
    assert sorted(sample.sample().tolist()) == x.flatten(2)[0].T.tolist()


def test_a_correction_that_was_made_before_is_taken_back():
    rows, other, layer = inputs(-60.0), inputs(-30.0, seed=1), read_by()
    bias = layer.bias.detach().clone()
    quantizer = started(other)
    fit_to_outputs(quantizer, other, [layer])
    before, quantizer = quantizer, started(rows)
    fit_to_outputs(quantizer, rows, [layer], before)
    once, directly = read_by(), started(rows)
    fit_to_outputs(directly, rows, [once])
    torch.testing.assert_close(quantizer.alpha, directly.alpha)
    # What the earlier range does to these rows is what it was corrected for, but for their deviations.
    difference = (before(other) - other).mean(0) - (before(rows) - rows).mean(0)
    weight = layer.weight_fake_quant(layer.weight)
    torch.testing.assert_close(layer.bias, once.bias - weight @ difference, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(layer.bias, bias)


def fit_on_a_rank(rank):
    rows, layer = inputs(-60.0), read_by()
    quantizer = started(rows)
    fit_to_outputs(quantizer, rows[:100] if rank == 0 else rows[100:], [layer])
    nothing, unseen = read_by(), started(rows)
    fit_to_outputs(unseen, rows if rank == 0 else torch.empty(0, 0), [nothing])
    return {"alpha": quantizer.alpha.detach(), "bias": layer.bias.detach(), "unseen": nothing.bias.detach()}


@pytest.mark.slow
def test_ranks_choose_what_one_would_of_all_rows(tmp_path):
    first, second = run_ranks(fit_on_a_rank, tmp_path)
    rows, layer = inputs(-60.0), read_by()
    quantizer = started(rows)
    fit_to_outputs(quantizer, rows, [layer])
    for found in (first, second):
        torch.testing.assert_close(found["alpha"], quantizer.alpha.detach())
        torch.testing.assert_close(found["bias"], layer.bias.detach())
        torch.testing.assert_close(found["unseen"], layer.bias.detach())
