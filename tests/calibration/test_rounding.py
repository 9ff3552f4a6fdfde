from __future__ import annotations

import copy

import pytest
import torch
from torch.ao.quantization import default_weight_fake_quant

from qsam2_ao.benchmark.accuracy.rivals import LSQFakeQuantize
from qsam2_ao.calibration.gram import VRCObserver
from qsam2_ao.calibration.rounding import ROUNDINGS, start_layer, start_quantizer
from qsam2_ao.calibration.vrc import output_energy
from qsam2_ao.errors import QConfigError
from qsam2_ao.quantizers import LSCFakeQuantize, broadcast_qparam
from qsam2_ao.quantizers.grids import WEIGHT_GRIDS


def layer(seed=0, out=24, width=64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(512, width, generator=generator) @ torch.randn(width, width, generator=generator)
    x[:, 3] *= 0.01
    weight = torch.randn(out, width, generator=generator)
    weight[:, 3] *= 20  # an outlier that the output hardly feels
    return weight, x.T @ x


def quantizer(bits=2, **options):
    return LSCFakeQuantize(bits, is_weight=True, **options).eval()


def test_knowing_the_inputs_starts_nearer_to_the_output():
    weight, gram = layer()
    blind, knowing = quantizer(), quantizer()
    start_quantizer(blind, weight)
    start_quantizer(knowing, weight, gram)
    assert output_energy(knowing(weight) - weight, gram) < output_energy(blind(weight) - weight, gram)


GRANULARITIES = [
    {},
    {"granularity": "group", "group_size": 16},
    {"granularity": "group", "group_size": 3},
    {"granularity": "tensor"},
]


@pytest.mark.slow
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("grid", WEIGHT_GRIDS)
@pytest.mark.parametrize("options", GRANULARITIES, ids=str)
def test_gptq_weights_are_kept_by_their_quantizer(bits, grid, options, monkeypatch):
    weight, gram = layer(out=12, width=49)
    weight[2] = 0.0
    weight[3:6] += 0.3  # far from zero
    plain, rounding = quantizer(bits, grid=grid, **options), quantizer(bits, grid=grid, **options)
    start_quantizer(plain, weight, gram)
    rounded = start_quantizer(rounding, weight, gram, "gptq")
    monkeypatch.setattr("qsam2_ao.calibration.rounding._REACH", 0.0)
    on_codes = start_quantizer(quantizer(bits, grid=grid, **options), weight, gram, "gptq")
    before = rounding.qparams()
    step = broadcast_qparam(before[0], tuple(weight.shape), options.get("group_size")) / 4
    torch.testing.assert_close(rounded, weight.clamp(on_codes - step, on_codes + step), rtol=2e-6, atol=5e-6)
    for training in (False, True):
        torch.testing.assert_close(rounding.train(training)(rounded).detach(), on_codes, rtol=2e-6, atol=5e-6)
        for found, expected in zip(rounding.qparams(), before, strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-5)
    with torch.no_grad():
        assert output_energy(rounding(rounded) - weight, gram) <= output_energy(plain(weight) - weight, gram)
    # Whatever continues from its state keeps the codes too.
    fresh = quantizer(bits, grid=grid, **options)
    fresh.load_state_dict(rounding.state_dict())
    assert torch.equal(fresh(rounded), rounding.eval()(rounded))


def test_a_range_started_anew_is_held_no_longer():
    weight, gram = layer()
    held, plain = quantizer(4), quantizer(4)
    start_quantizer(held, weight, gram, "gptq")
    for each in (held, plain):
        each.initialize(weight)
    assert torch.equal(held(weight), plain(weight))
    # State dicts of before there were held ranges.
    older = {key: value for key, value in plain.state_dict().items() if key != "held"}
    start_quantizer(held, weight, gram, "gptq")
    held.load_state_dict(older)
    assert torch.equal(held(weight), plain(weight))


@pytest.mark.parametrize("grid", WEIGHT_GRIDS)
def test_held_ranges_are_learned_like_others(grid):
    weight, gram = layer()
    learned = quantizer(3, grid=grid).train()
    rounded = start_quantizer(learned, weight, gram, "gptq").requires_grad_()
    optimizer = torch.optim.Adam([rounded, learned.log_alpha], lr=0.01)
    target = weight * 0.7
    start = rounded.detach().clone(), learned.log_alpha.detach().clone()
    losses = []
    for _ in range(30):
        loss = (learned(rounded) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(rounded, start[0])
    assert not torch.equal(learned.log_alpha, start[1])


@pytest.mark.parametrize(
    ("rounding", "factory"),
    [
        ("nearest", default_weight_fake_quant),
        *((rounding, LSCFakeQuantize.with_args(bits=3, is_weight=True)) for rounding in ROUNDINGS),
    ],
)
def test_the_bias_makes_up_for_a_massive_input(rounding, factory):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 32, generator=generator)

    def error(offset):
        linear, inputs = torch.nn.Linear(32, 8), x.clone()
        with torch.no_grad():
            linear.weight.copy_(torch.randn(8, 32, generator=torch.Generator().manual_seed(1)))
        inputs[:, 5] += offset
        observer = VRCObserver()
        observer(inputs)
        wanted, fake_quantize = linear(inputs), factory()
        start_layer(linear, fake_quantize, observer.statistics(), rounding)
        found = torch.nn.functional.linear(inputs, fake_quantize(linear.weight), linear.bias)
        torch.testing.assert_close(found.mean(0), wanted.mean(0), rtol=1e-3, atol=1e-3)
        return float((found - wanted).square().mean())

    assert error(1000.0) == pytest.approx(error(0.0), rel=0.02)


def test_without_a_bias_the_mean_counts():
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(0))
    x[:, 5] += 100
    observer = VRCObserver()
    observer(x)
    torch.manual_seed(0)
    bare = torch.nn.Linear(16, 8, bias=False)
    wanted = bare(x)
    errors = []
    for inputs in (None, observer.statistics()):
        copied, fake_quantize = copy.deepcopy(bare), quantizer(3)
        start_layer(copied, fake_quantize, inputs, "gptq")
        assert copied.bias is None
        errors.append(float((x @ fake_quantize(copied.weight).T - wanted).square().mean()))
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("tokens", [0.02, 0.05])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_is_no_worse_than_nearest_for_massive_and_for_other_tokens(bits, tokens):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 48, generator=generator) @ torch.randn(48, 48, generator=generator) / 7
    massive = torch.rand(2000, generator=generator) < tokens
    x[massive, 7] += 1000
    observer = VRCObserver()
    observer(x)
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 16)
    errors = {}
    for rounding in ROUNDINGS:
        copied, fake_quantize = copy.deepcopy(linear), quantizer(bits)
        start_layer(copied, fake_quantize, observer.statistics(), rounding)
        with torch.no_grad():
            found = torch.nn.functional.linear(x, fake_quantize(copied.weight), copied.bias)
            error = (found - linear(x)).square()
        errors[rounding] = float(error.mean()), float(error[~massive].mean())
    assert errors["gptq"][0] <= 1.001 * errors["nearest"][0]
    assert errors["gptq"][1] <= 1.02 * errors["nearest"][1]


def test_without_inputs_nothing_is_rounded():
    weight, _ = layer()
    assert torch.equal(start_quantizer(quantizer(), weight, None, "gptq"), weight)


def test_rivals_start_by_themselves_and_are_not_rounded():
    weight, gram = layer()
    rival = LSQFakeQuantize(2, is_weight=True)
    assert torch.equal(start_quantizer(rival, weight, gram), weight)
    assert rival.scale.shape == (24,)
    with pytest.raises(QConfigError, match="needs LSC's quantizer"):
        start_quantizer(rival, weight, gram, "gptq")


def test_an_unknown_rounding_is_refused():
    weight, gram = layer()
    with pytest.raises(QConfigError, match=r"'up'.*nearest, gptq"):
        start_quantizer(quantizer(), weight, gram, "up")


@pytest.mark.parametrize(
    "options", [{}, {"granularity": "group", "group_size": 16}, {"granularity": "tensor"}], ids=str
)
def test_gptq_takes_the_best_of_several_ranges(options, monkeypatch):
    weight, gram = layer()
    errors = {}
    for multiples in ((1.0,), (0.8,), (1.0, 0.8, 1.2)):
        monkeypatch.setattr("qsam2_ao.calibration.rounding._MULTIPLES", multiples)
        fake_quantize = quantizer(**options)
        started = start_quantizer(fake_quantize, weight, gram, "gptq")
        difference = fake_quantize(started).detach().double() - weight.double()
        errors[multiples] = ((difference @ gram.double()) * difference).sum(1)
    best = errors[1.0, 0.8, 1.2]
    if options.get("granularity") == "tensor":
        assert best.sum() <= min(errors[(1.0,)].sum(), errors[(0.8,)].sum())
    else:
        assert (best <= torch.minimum(errors[(1.0,)], errors[(0.8,)])).all()
        assert (best < errors[(1.0,)]).any()
