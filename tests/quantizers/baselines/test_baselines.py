from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import nn
from torch.ao.quantization import disable_observer

from qsam2_ao import QSAM2Error, convert_qsam2, prepare_qsam2
from qsam2_ao.calibration import exercise
from qsam2_ao.errors import CalibrationError, NonFiniteError, QConfigError
from qsam2_ao.fake_quant import fake_quantizers
from qsam2_ao.models.embedded import load_embedded
from qsam2_ao.quantizers import range_parameters
from qsam2_ao.quantizers.baselines import (
    BASELINES,
    LSQFakeQuantize,
    PACTFakeQuantize,
    SAWBFakeQuantize,
    TorchAOFakeQuantize,
    baseline_qconfig,
)
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage
from qsam2_ao.training.qat import train_qat

WEIGHTS = [
    lambda bits: LSQFakeQuantize(bits, is_weight=True),
    lambda bits: LSQFakeQuantize(bits, is_weight=True, plus=True),
    lambda bits: SAWBFakeQuantize(bits),
    lambda bits: TorchAOFakeQuantize(bits, is_weight=True),
]
ACTIVATIONS = [
    lambda bits: LSQFakeQuantize(bits),
    lambda bits: LSQFakeQuantize(bits, plus=True),
    lambda bits: PACTFakeQuantize(bits),
    lambda bits: TorchAOFakeQuantize(bits),
]
SMALL = ProceduralBatches((Stage(0, ((BatchKind(1, 2, 1), 0.5), (BatchKind(1, 2, 1, images=True), 0.5))),))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def started(make, bits, x):
    quantizer = make(bits)
    quantizer.initialize(x)
    return quantizer


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("make", WEIGHTS)
@pytest.mark.parametrize("shape", [(6, 40), (6, 4, 3, 3)])
def test_weights_are_on_the_grid_of_their_own_qparams(make, bits, shape):
    weight = random(*shape)
    quantizer = started(make, bits, weight)
    values = quantizer(weight).detach()
    scale, zero_point = (t.reshape(-1, *[1] * (len(shape) - 1)) for t in quantizer.calculate_qparams())
    codes = values / scale + zero_point
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert codes.min() >= quantizer.quant_min - 1e-3
    assert codes.max() <= quantizer.quant_max + 1e-3
    assert values.shape == weight.shape


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("make", ACTIVATIONS)
def test_activations_keep_zero_and_their_shape(make, bits):
    x = random(2, 5, 7) + 0.7
    x[0, 0, 0] = 0
    quantizer = started(make, bits, x)
    values = quantizer(x).detach()
    scale, zero_point = quantizer.calculate_qparams()
    assert zero_point == zero_point.round()
    assert values.shape == x.shape
    assert values[0, 0, 0] == 0
    codes = values / scale + zero_point
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)


def lsq_reference(x, scale, low, high, grad):
    """LSQ's gradients (arXiv 1902.08153, equations 3 and 5), in float64, for one scale."""
    v = x / scale
    inside = (v.round() >= low) & (v.round() <= high)  # torch's operator clips after rounding
    per_scale = torch.where(inside, v.round() - v, v.round().clamp(low, high))
    return grad * inside, (grad * per_scale).sum() / math.sqrt(x.numel() * high)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_lsq_gradients_are_the_papers(bits):
    weight, grad = random(5, 64).requires_grad_(), random(5, 64, seed=1)
    quantizer = started(lambda b: LSQFakeQuantize(b, is_weight=True), bits, weight)
    quantizer(weight).backward(grad)
    for row in range(5):
        x, scale = weight[row].detach().double(), quantizer.scale[row].detach().double()
        grad_x, grad_scale = lsq_reference(x, scale, quantizer.quant_min, quantizer.quant_max, grad[row].double())
        torch.testing.assert_close(weight.grad[row].double(), grad_x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(quantizer.scale.grad[row].double(), grad_scale, rtol=1e-4, atol=1e-5)


def test_lsq_starts_as_in_the_papers():
    weight = random(3, 50)
    torch.testing.assert_close(
        started(lambda b: LSQFakeQuantize(b, is_weight=True), 4, weight).scale.detach(),
        2 * weight.abs().mean(1) / math.sqrt(7),
    )
    mean, std = weight.mean(1), weight.std(1, correction=0)
    torch.testing.assert_close(
        started(lambda b: LSQFakeQuantize(b, is_weight=True, plus=True), 4, weight).scale.detach(),
        torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / 8,
    )


def test_only_lsq_plus_learns_the_offset():
    x = random(100)
    for plus in (False, True):
        quantizer = started(lambda b, plus=plus: LSQFakeQuantize(b, plus=plus), 4, x)
        quantizer(x).square().sum().backward()
        assert quantizer.scale.grad is not None
        assert (quantizer.zero_point.grad is not None) == plus


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
    quantizer = started(SAWBFakeQuantize, 2, weight)
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
    quantizer = started(SAWBFakeQuantize, 4, weight)
    before = quantizer.clip.clone()
    quantizer.eval()(3 * weight)
    assert torch.equal(quantizer.clip, before)
    quantizer.train()(3 * weight)
    torch.testing.assert_close(quantizer.clip, 3 * before)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_torchao_computes_what_its_own_module_computes(bits):
    from torchao.quantization.qat import FakeQuantizedLinear, IntxFakeQuantizeConfig, initialize_fake_quantizers

    config = IntxFakeQuantizeConfig(
        getattr(torch, f"int{bits}"), "per_channel", is_dynamic=False, range_learning=True, is_symmetric=True
    )
    theirs = FakeQuantizedLinear(32, 8, bias=False, weight_config=config)
    x = random(4, 32)
    initialize_fake_quantizers(theirs, (x,))
    ours = started(lambda b: TorchAOFakeQuantize(b, is_weight=True), bits, theirs.weight)
    wanted = theirs(x)
    wanted.square().sum().backward()
    got = nn.functional.linear(x, ours(theirs.weight))
    torch.testing.assert_close(got, wanted)
    got.square().sum().backward()
    torch.testing.assert_close(ours.scale.grad, theirs.weight_fake_quantizer.scale.grad.reshape(-1))


@pytest.mark.parametrize("make", ACTIVATIONS)
def test_an_activation_is_not_evaluated_before_it_saw_data(make):
    quantizer = make(8).eval()
    with pytest.raises(CalibrationError, match="calibration data"):
        quantizer(random(4))
    with pytest.raises(NonFiniteError), quantizer.calibrating():
        quantizer(torch.tensor([1.0, float("nan")]))
    with quantizer.calibrating():
        assert torch.equal(quantizer(random(4)), random(4))
    assert torch.isfinite(quantizer(random(4))).all()


@pytest.mark.parametrize("make", [*(lambda b, m=m: started(m, b, random(6, 40)) for m in WEIGHTS)])
def test_state_travels(make):
    quantizer, weight = make(4), random(6, 40)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(1.1)
    for other in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(other(weight), quantizer(weight))
    fresh = copy.deepcopy(quantizer)
    for name in fresh.sized:
        getattr(fresh, name).data = torch.empty(0)
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(weight), quantizer(weight))


@pytest.mark.parametrize("make", [WEIGHTS[0], WEIGHTS[3]])
def test_a_scale_that_a_step_made_negative_is_the_smallest_one(make):
    weight = random(6, 40)
    quantizer = started(make, 2, weight).eval()
    with torch.no_grad():
        quantizer.scale[1] = -1.0
    scale, _ = quantizer.calculate_qparams()
    assert scale[1] > 0
    assert float(quantizer(weight)[1].abs().max()) <= 2.001 * float(scale[1])


def test_bad_settings_are_refused():
    with pytest.raises(QConfigError, match="unknown baseline 'lsc'"):
        baseline_qconfig("lsc", 4, 8)
    for bits in ((1, 8), (9, 8), (4, 3), (4, 16)):
        with pytest.raises(QSAM2Error):
            baseline_qconfig("lsq", *bits)


@pytest.mark.slow
@pytest.mark.parametrize("activation_bits", [4, None])
@pytest.mark.parametrize("method", BASELINES)
def test_prepares_trains_and_converts(method, activation_bits):
    model = load_embedded(SAM2VideoPredictor)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    qconfig = baseline_qconfig(method, 2, activation_bits)
    prepared = prepare_qsam2(model, qconfig, calibration_data=images, vrc=None, progress=False)
    before = [parameter.detach().clone() for parameter in range_parameters(prepared)]
    train_qat(prepared, steps=2, batches=SMALL.stream(2), progress=False)
    after = range_parameters(prepared)
    assert method in ("minmax", "pact-sawb") or any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    prepared.apply(disable_observer)  # torch.ao's own observers go on in eval mode
    converted = convert_qsam2(prepared)
    assert {(plan.bits, plan.activation_bits) for plan in converted.qsam2_plan} == {(2, activation_bits)}
    state = copy.deepcopy({name: q.state_dict() for name, q in fake_quantizers(prepared)})
    seen = []
    for m in (prepared.eval(), converted):
        hook = m.image_encoder.register_forward_hook(lambda *call: seen.append(call[-1]["backbone_fpn"]))
        exercise(m, images)
        hook.remove()
    for name, quantizer in fake_quantizers(prepared):
        for key, value in quantizer.state_dict().items():
            assert torch.equal(value, state[name][key])
    half = len(seen) // 2
    for own, deployed in zip(seen[:half], seen[half:], strict=True):
        for a, b in zip(own, deployed, strict=True):
            # An input on the boundary between two of 16 codes may fall to either side, and what follows with it.
            assert (a - b).norm() <= (1e-5 if activation_bits is None else 0.1) * a.norm()
