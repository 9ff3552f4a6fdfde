from __future__ import annotations

import pytest
import torch

from qsam2_ao.benchmark.accuracy.rivals import PACTFakeQuantize, SAWBFakeQuantize


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def started(bits, weight):
    quantizer = SAWBFakeQuantize(bits)
    quantizer.initialize(weight)
    return quantizer


@pytest.mark.parametrize("bits", [4, 8])
def test_pact_gradients_are_the_papers(bits):
    x, grad = (3 * random(400)).requires_grad_(), random(400, seed=1)
    quantizer = PACTFakeQuantize(bits)
    quantizer._set({"clip_low": torch.tensor([-2.0]), "clip_high": torch.tensor([3.0])})
    quantizer(x).backward(grad)
    values = x.detach()
    inside = (values > -2) & (values < 3)
    torch.testing.assert_close(x.grad, grad * inside)
    torch.testing.assert_close(quantizer.clip_high.grad, grad[values >= 3].sum().reshape(1))
    torch.testing.assert_close(quantizer.clip_low.grad, grad[values <= -2].sum().reshape(1))


def test_sawb_has_four_levels_at_two_bits_and_passes_gradients():
    weight = random(2, 200).requires_grad_()
    quantizer = started(2, weight)
    values = quantizer(weight)
    for row in range(2):
        w = weight[row].detach()
        clip = 3.12 * w.square().mean().sqrt() - 2.064 * w.abs().mean()
        levels = values[row].detach().unique()
        torch.testing.assert_close(levels, clip * torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0]), rtol=1e-5, atol=1e-6)
    grad = random(2, 200, seed=1)
    values.backward(grad)
    assert torch.equal(weight.grad, grad)


def test_sawb_follows_the_weight_in_training_only():
    weight = random(2, 200)
    quantizer = started(4, weight)
    before = quantizer.clip.clone()
    quantizer.eval()(3 * weight)
    assert torch.equal(quantizer.clip, before)
    quantizer.train()(3 * weight)
    torch.testing.assert_close(quantizer.clip, 3 * before)


@pytest.mark.parametrize(("bits", "c1", "c2"), [(2, 3.12, -2.064), (3, 7.509, -6.892), (4, 12.68, -12.80)])
def test_sawb_clips_by_the_papers_fit(bits, c1, c2):
    weight = random(3, 500)
    double = weight.double()
    clip = c1 * double.square().mean(1).sqrt() + c2 * double.abs().mean(1)
    torch.testing.assert_close(started(bits, weight).clip.double(), clip, rtol=1e-5, atol=0)


def test_sawb_clips_at_the_largest_where_no_fit_helps():
    weight = random(3, 50)
    assert torch.equal(started(8, weight).clip, weight.abs().amax(1))
    equal = torch.full((1, 50), -0.5)  # the fit would be negative
    assert torch.equal(started(4, equal).clip, torch.tensor([0.5]))
    assert torch.isfinite(started(4, torch.zeros(1, 50))(torch.zeros(1, 50))).all()


def test_pact_keeps_zero_between_its_clips():
    quantizer = PACTFakeQuantize(4)
    quantizer._set({"clip_low": torch.tensor([0.3]), "clip_high": torch.tensor([2.0])})
    assert quantizer(torch.tensor([0.0])).detach() == 0
    assert quantizer.clip_low.detach() == 0


def test_pact_starts_within_the_data():
    x = random(4000) * 2 + 1
    quantizer = PACTFakeQuantize(4)
    with quantizer.calibrating():
        quantizer(x)
    scale, _ = quantizer.calculate_qparams()
    assert x.min() - scale <= quantizer.clip_low <= 0 <= quantizer.clip_high <= x.max() + scale
