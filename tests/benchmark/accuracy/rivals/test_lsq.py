from __future__ import annotations

import math

import pytest
import torch
from torch.ao.quantization import MovingAverageMinMaxObserver
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

from qsam2_ao.benchmark.accuracy.rivals import LSQFakeQuantize


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def started(bits, x, **settings):
    quantizer = LSQFakeQuantize(bits, **settings)
    quantizer.initialize(x)
    return quantizer


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def reference(x, scale, offset, low, high, upstream):
    """Output and gradients of LSQ (eq. 1 to 5) and LSQ+ (eq. 3 to 6) by autograd in float64, for one scale."""
    x, scale, offset = (t.detach().double().requires_grad_() for t in (x, scale, offset))
    scaled = (x - offset) / scale
    # torch's operators clip after rounding, so a value that rounds to an end still counts as inside.
    inside = (scaled.round() >= low) & (scaled.round() <= high)
    code = Round.apply(torch.where(inside, scaled, scaled.detach().clamp(low, high)))
    output = code * scale + offset
    output.backward(upstream.double())
    factor = 1 / math.sqrt(x.numel() * high)
    return output.detach(), x.grad, scale.grad * factor, offset.grad * factor


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(5, 64), (5, 4, 3, 3)])
@pytest.mark.parametrize("plus", [False, True])
def test_gradients_of_weights_are_the_papers(bits, shape, plus):
    weight, upstream = random(*shape).requires_grad_(), random(*shape, seed=1)
    quantizer = started(bits, weight, is_weight=True, plus=plus)
    output = quantizer(weight)
    output.backward(upstream)
    zero = torch.zeros(())
    for row in range(5):
        wanted, grad_x, grad_scale, _ = reference(
            weight[row], quantizer.scale[row], zero, quantizer.quant_min, quantizer.quant_max, upstream[row]
        )
        torch.testing.assert_close(output[row].detach().double(), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(weight.grad[row].double(), grad_x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(quantizer.scale.grad[row].double(), grad_scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("plus", [False, True])
def test_gradients_of_activations_are_the_papers(bits, plus):
    x, upstream = (random(3, 200) * 1.5 + 0.4).requires_grad_(), random(3, 200, seed=1)
    quantizer = started(bits, x, plus=plus)
    with torch.no_grad():
        quantizer.scale.fill_(3 / quantizer.quant_max)  # so that values are clipped at both ends
    if plus:
        with torch.no_grad():
            quantizer.offset.copy_(-quantizer.scale * round(0.4 * quantizer.quant_max))
    scale, zero_point = quantizer.calculate_qparams()
    output = quantizer(x)
    output.backward(upstream)
    wanted, grad_x, grad_scale, grad_offset = reference(x, scale, -zero_point * scale, 0, quantizer.quant_max, upstream)
    assert 0 < float((grad_x == 0).double().mean()) < 1
    torch.testing.assert_close(output.detach().double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), grad_x, rtol=1e-5, atol=1e-6)
    if plus:
        torch.testing.assert_close(quantizer.scale.grad.double(), grad_scale, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(quantizer.offset.grad.double(), grad_offset, rtol=1e-4, atol=1e-5)
    else:
        # The zero point is fixed, so that the offset -zero_point * scale follows the scale.
        through = grad_scale - zero_point.double() * grad_offset
        torch.testing.assert_close(quantizer.scale.grad.double(), through, rtol=1e-4, atol=1e-4)


def test_it_is_torch_aos_learnable_fake_quantize():
    x, upstream = random(3, 200) + 0.4, random(3, 200, seed=1)
    ours = started(4, x)
    scale, zero_point = ours.calculate_qparams()
    theirs = _LearnableFakeQuantize(
        MovingAverageMinMaxObserver, 0, 15, float(scale), float(zero_point), use_grad_scaling=True
    ).enable_param_learning()
    wanted, got = theirs(x), ours(x)
    assert torch.equal(got, wanted)
    wanted.backward(upstream)
    got.backward(upstream)
    torch.testing.assert_close(ours.scale.grad, theirs.scale.grad)


def test_weights_start_as_in_the_papers():
    weight = random(3, 50)
    lsq = started(4, weight, is_weight=True)
    torch.testing.assert_close(lsq.scale.detach(), 2 * weight.abs().mean(1) / math.sqrt(7))
    mean, std = weight.mean(1), weight.std(1, correction=0)
    plus = started(4, weight, is_weight=True, plus=True)
    wanted = torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / 8
    torch.testing.assert_close(plus.scale.detach(), wanted)


def test_activations_start_as_in_the_papers():
    x = random(3000) + 0.5
    scale, zero_point = started(4, x).calculate_qparams()
    torch.testing.assert_close(scale, (2 * x.abs().mean() / math.sqrt(15)).reshape(1))
    assert float(zero_point) == round(float(-x.min() / ((x.max() - x.min()) / 15)))
    plus = started(4, x, plus=True)

    def error(factor):
        scale, zero_point = plus.calculate_qparams()
        scale = scale * factor
        return float(((torch.round(x / scale + zero_point).clamp(0, 15) - zero_point) * scale - x).square().sum())

    assert error(1.0) < min(error(0.7), error(1.4))


def test_only_lsq_plus_learns_the_offset():
    x = random(100)
    assert [name for name, _ in started(4, x).named_parameters()] == ["scale"]
    assert [name for name, _ in started(4, x, plus=True).named_parameters()] == ["scale", "offset"]
    assert [name for name, _ in started(4, random(3, 9), is_weight=True, plus=True).named_parameters()] == ["scale"]
