"""Gradients of LSC against float64 autograd of the method's formulas, and against torch's learnable
fake-quantize."""

from __future__ import annotations

import math

import pytest
import torch

from qsam2_ao.quantizers.affine import dequantize_affine, expand_groups, quantize_affine
from qsam2_ao.quantizers.grids import ClipRange
from qsam2_ao.quantizers.lsc import LSCFakeQuantize
from qsam2_ao.quantizers.lsc_function import LSCFunction, LSCSettings


def round_through(x):
    return x + (torch.round(x) - x).detach()


def reference_output(x, scale, zero_point, low, high):
    """Clamp, round straight-through, scale back: autograd then gives the method's derivatives to s and x."""
    return (round_through(torch.clamp(x / scale + zero_point, low, high)) - zero_point) * scale


def weight_reference(weight, log_alpha, bits, granularity, group):
    """Mid-rise quantizer in float64: s = 2 alpha sigma / (L - 1), sigma about zero and without gradient."""
    w = weight.detach().double().requires_grad_()
    raw = log_alpha.detach().double().requires_grad_()
    flat = w.reshape(w.shape[0], -1)
    if granularity == "tensor":
        pieces = [flat.reshape(1, -1)]
    elif granularity == "channel":
        pieces = [flat]
    else:
        pieces = list(flat.split(group, dim=1))
    sigma = torch.stack([p.detach().square().mean(-1).sqrt() for p in pieces], dim=-1)
    if granularity != "group":
        sigma = sigma.squeeze(-1)
    levels = 2**bits
    scale = 2 * raw.exp() * sigma / (levels - 1)
    sharing = flat.numel() / sigma.numel()
    # The gradient scale of LSQ, applied to the path through alpha only.
    g = 1 / math.sqrt(sharing * (levels - 1))
    scale = scale * g + (scale * (1 - g)).detach()
    if granularity == "channel":
        wide = scale[:, None]
    elif granularity == "group":
        wide = expand_groups(scale, flat.shape[1], group)
    else:
        wide = scale
    out = reference_output(flat, wide, (levels - 1) / 2, 0, levels - 1).reshape(w.shape)
    return w, raw, out


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
@pytest.mark.parametrize(("granularity", "group"), [("tensor", None), ("channel", None), ("group", 7)])
@pytest.mark.parametrize("shape", [(6, 20), (5, 3, 3, 3)])
def test_weight_gradients_match_the_float64_reference(bits, granularity, group, shape):
    torch.manual_seed(bits)
    weight = torch.randn(shape, requires_grad=True)
    quantizer = LSCFakeQuantize(bits, is_weight=True, granularity=granularity, group_size=group)
    quantizer.initialize(weight)
    with torch.no_grad():
        quantizer.log_alpha.mul_(0.8)
        quantizer.alpha_bar.copy_(quantizer.alpha)
    upstream = torch.randn(shape)
    w, raw, expected = weight_reference(weight, quantizer.log_alpha, bits, granularity, group)
    expected.backward(upstream.double())
    out = quantizer(weight)
    out.backward(upstream)
    torch.testing.assert_close(out.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), w.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantizer.log_alpha.grad.double(), raw.grad, rtol=1e-3, atol=1e-4)
    assert 0 < (weight.grad == 0).float().mean() < 0.5


@pytest.mark.parametrize("bits", [4, 8])
def test_activation_gradients_match_the_float64_reference(bits):
    torch.manual_seed(bits)
    x = torch.nn.functional.gelu(torch.randn(4, 50, 8)).requires_grad_()
    quantizer = LSCFakeQuantize(bits)
    quantizer.initialize(x)
    with torch.no_grad():
        quantizer.log_alpha.fill_(math.log(2.0))
        quantizer.alpha_bar.fill_(2.0)
    out = quantizer(x)
    upstream = torch.randn_like(x)
    out.backward(upstream)

    exact = x.detach().double().requires_grad_()
    alpha = torch.tensor(2.0, dtype=torch.double, requires_grad=True)
    mean, sigma = exact.detach().mean(), exact.detach().std(correction=0)
    low = exact.detach().min()  # the lower end lies at the observed minimum, the upper one follows alpha
    assert float(mean - 2 * sigma) < float(low)
    steps = 2**bits - 1
    scale = (mean + alpha * sigma - low) / steps
    zero_point = torch.round(-low / scale).detach()
    expected = reference_output(exact, scale, zero_point, 0, steps)
    expected.backward(upstream.double())
    torch.testing.assert_close(out.detach().double(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    gradient_scale = 1 / math.sqrt(x.numel() * steps)
    assert quantizer.log_alpha.grad.item() == pytest.approx(alpha.grad.item() * 2 * gradient_scale, rel=1e-3)


def apply(x, alpha, scale, zero_point, quant_range, granularity="tensor"):
    ones, free = torch.ones_like(scale), torch.zeros_like(scale, dtype=torch.bool)
    clip = ClipRange(scale, zero_point, ones, free)
    return LSCFunction.apply(x, alpha, clip, ones, LSCSettings(*quant_range, granularity, None))


def away_from_the_ends(x, scale, zero_point, low, high):
    """Drop what lies within half a step of the range's ends, where torch's rule rounds before it compares."""
    steps = x / scale + zero_point
    return torch.where(((steps - low).abs() < 0.6) | ((steps - high).abs() < 0.6), scale * 0.2, x)


def test_equals_torch_learnable_fake_quantize_per_tensor():
    torch.manual_seed(0)
    scale, zero_point = torch.tensor([0.25]), torch.tensor([7.0])
    x = away_from_the_ends(torch.randn(1000) * 2, scale, zero_point, 0, 15)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    alpha, s = torch.ones(1, requires_grad=True), scale.clone().requires_grad_()
    upstream = torch.randn(1000)
    out = apply(ours, alpha, scale, zero_point, (0, 15))
    other = torch._fake_quantize_learnable_per_tensor_affine(theirs, s, zero_point, 0, 15, 1.0)
    out.backward(upstream)
    other.backward(upstream)
    torch.testing.assert_close(out, other)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(alpha.grad, s.grad, rtol=1e-4, atol=1e-4)


def test_equals_torch_learnable_fake_quantize_per_channel():
    torch.manual_seed(0)
    scale, zero_point = torch.tensor([0.25, 0.125, 0.5]), torch.zeros(3)
    x = away_from_the_ends(torch.randn(3, 500) * 2, scale[:, None], 0.0, -7, 7)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    alpha, s = torch.ones(3, requires_grad=True), scale.clone().requires_grad_()
    upstream = torch.randn(3, 500)
    out = apply(ours, alpha, scale, zero_point, (-7, 7), "channel")
    other = torch._fake_quantize_learnable_per_channel_affine(theirs, s, zero_point, 0, -7, 7, 1.0)
    out.backward(upstream)
    other.backward(upstream)
    torch.testing.assert_close(out, other)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(alpha.grad, s.grad, rtol=1e-4, atol=1e-4)


def test_forward_is_the_deployed_arithmetic_to_the_bit():
    x = torch.randn(1000) * 3
    scale, zero_point = torch.tensor([0.1234567]), torch.tensor([7.5])
    out = apply(x, torch.ones(1), scale, zero_point, (0, 15))
    expected = dequantize_affine(quantize_affine(x, scale, zero_point, 0, 15), scale, zero_point)
    assert torch.equal(out, expected)
