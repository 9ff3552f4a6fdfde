from __future__ import annotations

import copy
import math

import pytest
import torch
from lsc_layers import GRANULARITIES, Layer, deployed, weight_quantizer
from torch.utils.checkpoint import checkpoint

from qsam2_ao.quantizers import LSCFakeQuantize

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


def test_a_range_that_reaches_all_values_is_not_widened_further():
    torch.manual_seed(0)
    x, upstream = torch.rand(64), torch.randn(64)
    moved = []
    for sign in (1.0, -1.0):
        quantizer = LSCFakeQuantize(8)
        with quantizer.calibrating():
            quantizer(x)
        with torch.no_grad():
            quantizer.log_alpha.fill_(5.0)
            quantizer.alpha_bar.fill_(math.exp(5.0))
        optimizer = torch.optim.SGD([quantizer.log_alpha], lr=1.0)
        # Two calls that disagree: their sum decides.
        (quantizer(x) @ upstream * sign * 3).backward()
        (quantizer(x) @ upstream * -sign).backward()
        gradient = quantizer.log_alpha.grad.item()
        optimizer.step()
        moved.append((gradient, 5.0 - quantizer.log_alpha.item()))
    (first, first_step), (second, second_step) = sorted(moved)
    assert first < 0 < second
    assert first_step == 0
    assert second_step == pytest.approx(second, rel=1e-3)


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


# --- training loops
# ------------------------------------------------------------------------------------------------


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
    state = {name: t.clone() for name, t in layer.input_fake_quant.state_dict().items()}
    layer.bfloat16()
    for name, value in layer.input_fake_quant.state_dict().items():
        assert torch.equal(value, state[name]), name
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
