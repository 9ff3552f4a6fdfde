"""Ranges hold still within a training step, and move once at its end, whatever was called how often."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from qsam2_ao.quantizers import LSCFakeQuantize
from qsam2_ao.quantizers.pool import Pool


class Layer(nn.Module):
    def __init__(self, bits=4, features=16):
        super().__init__()
        self.linear = nn.Linear(features, features)
        self.weight_fake_quant = LSCFakeQuantize(bits, is_weight=True)
        self.weight_fake_quant.initialize(self.linear.weight)
        self.input_fake_quant = LSCFakeQuantize(8)

    def forward(self, x):
        weight = self.weight_fake_quant(self.linear.weight)
        return nn.functional.linear(self.input_fake_quant(x), weight, self.linear.bias)


def started(seed=0, **settings_):
    torch.manual_seed(seed)
    layer = Layer(**settings_)
    with layer.input_fake_quant.calibrating():
        layer(torch.randn(64, 16))
    return layer


def sgd(layer, lr=0.05):
    return torch.optim.SGD(layer.parameters(), lr=lr)


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_pool_is_one_pass_over_all(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, generator=generator, dtype=torch.float64) * 3 + 100 for n in sizes]
    whole = torch.cat(parts)
    for convert in (torch.Tensor.item, lambda value: value.reshape(1)):
        pools = [
            Pool.of([convert(v) for v in (p.mean(), p.std(correction=0), p.min(), p.max())], p.numel()) for p in parts
        ]
        joined = pools[0]
        for pool in pools[1:]:
            joined = joined.joined(pool)
        expected = (whole.mean(), whole.std(correction=0), whole.min(), whole.max())
        for value, reference in zip(joined.statistics(), expected, strict=True):
            value = torch.as_tensor(value, dtype=torch.float64).reshape(())
            torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-7)


def test_four_micro_batches_move_the_ranges_as_one_batch_does():
    layers = [started() for _ in range(2)]
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    for layer, batches in zip(layers, ([x], x.split(16)), strict=True):
        for quantizer in (layer.weight_fake_quant, layer.input_fake_quant):
            with torch.no_grad():
                quantizer.log_alpha.add_(0.2)  # alpha_bar is on its way
        for part in batches:
            (layer(part).square().sum() / 64).backward()
    for name in ("weight_fake_quant", "input_fake_quant"):
        one, four = (getattr(layer, name) for layer in layers)
        assert torch.equal(one.alpha_bar, four.alpha_bar)
        # A tenth of the way from 1 to exp(0.2), not a third.
        ratio = one.alpha_bar / one.alpha * torch.tensor(0.2).exp()
        torch.testing.assert_close(ratio, torch.full_like(ratio, 1 + 0.1 * (torch.tensor(0.2).exp().item() - 1)))
        for key in ("mean", "std", "low", "high"):
            torch.testing.assert_close(getattr(one, key), getattr(four, key))


def test_an_optimizers_step_ends_the_step_also_where_alpha_has_no_gradient():
    layer = started()
    layer.input_fake_quant.log_alpha.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.0)
    quantizer, start = layer.input_fake_quant, layer.input_fake_quant.high.item()
    expected = start
    for factor in (2, 3):
        x = torch.randn(32, 16) * factor
        for _ in range(3):
            layer(x).sum().backward()
        expected += 0.05 * (x.max().item() - expected)
        optimizer.step()
    assert quantizer.high.item() == pytest.approx(expected, rel=1e-6)


def test_within_a_step_the_range_of_an_activation_holds_still():
    quantizer = started().input_fake_quant
    x, far = torch.linspace(-1, 1, 99), torch.randn(1000) * 40
    first = quantizer(x)
    for _ in range(5):
        quantizer(far)
    assert torch.equal(quantizer(x), first)
    sgd(quantizer, lr=0.0).step()
    assert not torch.equal(quantizer(x), first)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
def test_recomputation_uses_the_range_of_its_call(reentrant, calibrated):
    plain = started() if calibrated else Layer()
    recomputed = copy.deepcopy(plain)
    frames = [torch.randn(32, 16) * scale for scale in (1.0, 1.5, 0.7, 2.0)]
    optimizers = [sgd(layer) for layer in (plain, recomputed)]
    for _ in range(3):
        for layer, optimizer in zip((plain, recomputed), optimizers, strict=True):
            optimizer.zero_grad()
            inputs = [frame.clone().requires_grad_() for frame in frames]
            outputs = [layer(x) if layer is plain else checkpoint(layer, x, use_reentrant=reentrant) for x in inputs]
            sum(out.square().mean() for out in outputs).backward()
        for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)
        # The sums of the shared weight's gradients differ in their order, the ranges in nothing.
        for optimizer in optimizers:
            optimizer.step()
        recomputed.load_state_dict(plain.state_dict())


def test_evaluation_in_the_middle_of_a_step_changes_nothing():
    alone = started()
    watched = copy.deepcopy(alone)
    batches = [torch.randn(32, 16) for _ in range(4)]
    for layer in (alone, watched):
        optimizer = sgd(layer)
        for step in range(2):
            for part in batches[2 * step : 2 * step + 2]:
                layer(part).square().mean().backward()
                if layer is watched:
                    layer.eval()
                    with torch.no_grad():
                        layer(torch.randn(500, 16) * 9)
                    layer.train()
            optimizer.step()
    assert states_equal(alone, watched)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_made_in_the_middle_of_a_step_goes_on_as_the_original(twin_of):
    layer = started()
    sgd(layer).step()
    batches = [torch.randn(32, 16) * (1 + k) for k in range(3)]
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    sgd(layer).step()
    layer(batches[0])
    twin = twin_of(layer)
    for model in (layer, twin):
        model.zero_grad()
        optimizer = sgd(model)
        for part in batches[1:]:
            model(part).square().mean().backward()
        optimizer.step()
        model(batches[0])
    assert states_equal(layer, twin)
    assert torch.equal(layer.eval()(batches[0]), twin.eval()(batches[0]))


def test_a_run_resumed_from_state_dicts_is_the_uninterrupted_one():
    batches = [torch.randn(32, 16) for _ in range(6)]

    def steps(layer, optimizer, parts):
        for part in parts:
            optimizer.zero_grad()
            layer(part).square().mean().backward()
            optimizer.step()

    whole = started()
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    steps(whole, optimizer, batches[:3])
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    steps(whole, optimizer, batches[3:])
    resumed = Layer()
    resumed.load_state_dict(saved[0])
    optimizer = torch.optim.Adam(resumed.parameters(), lr=0.01)
    optimizer.load_state_dict(saved[1])
    steps(resumed, optimizer, batches[3:])
    assert states_equal(whole, resumed)


def test_an_optimizer_of_another_model_ends_no_step():
    layer, other = started(), started()
    layer(torch.randn(32, 16)).sum().backward()
    held = layer.input_fake_quant.step
    other(torch.randn(32, 16)).sum().backward()
    sgd(other).step()
    assert held is layer.input_fake_quant.step
    assert not held.ended


def test_learned_ranges_that_no_optimizer_has_are_told_of_once(caplog):
    layer = started()
    optimizer = torch.optim.SGD(layer.linear.parameters(), lr=0.01)

    def steps(count):
        for _ in range(count):
            layer(torch.randn(32, 16)).sum().backward()
            optimizer.step()

    steps(1)
    assert not caplog.records
    steps(3)
    (record,) = caplog.records
    assert "no optimizer has the learned ranges of 1 input quantizers" in record.getMessage()
    assert "range_parameters(model)" in record.getMessage()


def test_ranges_that_an_optimizer_has_or_that_are_not_learned_are_not_told_of(caplog):
    for learned in (True, False):
        layer = started()
        layer.input_fake_quant.log_alpha.requires_grad_(learned)
        optimizers = [sgd(layer), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)]
        for _ in range(3):
            layer(torch.randn(32, 16)).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
    assert not caplog.records


def test_an_optimizer_inside_another_ends_a_step_once():
    class Outer(torch.optim.SGD):
        def step(self, closure=None):
            self.inner.step()

    layer = started(bits=2)
    quantizer = layer.weight_fake_quant
    outer = Outer(layer.parameters(), lr=0.1)
    outer.inner = sgd(layer)
    layer(torch.randn(32, 16)).square().mean().backward()
    before = quantizer.alpha_bar.clone()
    outer.step()
    torch.testing.assert_close(quantizer.alpha_bar, torch.lerp(before, quantizer.alpha.detach(), 0.1))


# --- weights changed behind autograd's back ------------------------------------------------------------------


def doubled(layer):
    layer.linear.weight.data.mul_(2)


def replaced(layer):
    layer.linear.weight.data = layer.linear.weight.data.flip(0)


def masked(layer):
    layer.linear.weight.data[:, ::2] = 0


def negated(layer):
    layer.linear.weight.data.neg_()


def loaded(layer):
    layer.load_state_dict({k: v * 0.5 if k == "linear.weight" else v for k, v in layer.state_dict().items()})


def assigned(layer):
    state = {k: v * 0.5 if k == "linear.weight" else v for k, v in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def resharded(layer):
    # As FSDP does: the storage is emptied and filled with other values, and no version counter tells of it.
    weight = layer.linear.weight
    with torch.autograd._unsafe_preserve_version_counter(weight), torch.no_grad():
        weight.mul_(1.5)


@pytest.mark.parametrize("change", [doubled, replaced, masked, negated, loaded, assigned, resharded])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_no_call_sees_a_weight_of_before_a_change(change, calls):
    layer = started()
    quantizer = layer.weight_fake_quant
    kept = [quantizer(layer.linear.weight) for _ in range(calls)]  # their graphs stay alive
    change(layer)
    now = quantizer(layer.linear.weight)
    assert torch.equal(now, copy.deepcopy(quantizer).eval()(layer.linear.weight))
    assert not torch.equal(now, kept[0])


def test_gradients_are_those_of_the_weight_that_the_call_used():
    layer, twin = started(), started()
    x = torch.randn(8, 16)
    outputs = []
    for model in (layer, twin):
        model(x)
        outputs.append(model(x))  # the second use in a step is shared
    with torch.no_grad():
        layer.linear.weight.data.mul_(3)
    for out in outputs:
        out.square().sum().backward()
    assert torch.equal(layer.linear.weight.grad, twin.linear.weight.grad)
    assert torch.equal(layer.weight_fake_quant.log_alpha.grad, twin.weight_fake_quant.log_alpha.grad)


def test_a_weight_used_once_in_a_step_is_not_kept():
    layer = started()
    optimizer = sgd(layer)
    optimizer.step()
    for calls in (1, 2, 2):
        outs = [layer(torch.randn(8, 16)) for _ in range(calls)]
        assert (layer.weight_fake_quant._shared._output is not None) == (calls > 1)
        sum(out.sum() for out in outs).backward()
        optimizer.step()


# --- torch.compile -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("state", ["fresh", "calibrated", "copied", "loaded"])
def test_compiled_training_learns_the_ranges_of_eager_training_without_a_graph_break(state):
    torch.manual_seed(0)
    eager = nn.Sequential(Layer(), nn.GELU(), Layer(2))
    if state == "calibrated":
        for layer in (eager[0], eager[2]):
            with layer.input_fake_quant.calibrating():
                layer(torch.randn(64, 16))
    elif state != "fresh":
        eager(torch.randn(64, 16))
    other = copy.deepcopy(eager)
    if state == "loaded":
        other = nn.Sequential(Layer(), nn.GELU(), Layer(2))
        other.load_state_dict(eager.state_dict())
        eager = copy.deepcopy(other)
    torch._dynamo.reset()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (eager, other)]
    for step in range(3):
        batches = [torch.randn(32, 16) * (1 + step) for _ in range(2)]
        for model, optimizer in zip((eager, compiled), optimizers, strict=True):
            optimizer.zero_grad()
            for x in batches:
                model(x).square().mean().backward()
            optimizer.step()
    for (key, a), b in zip(eager.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=key)
    x = torch.randn(32, 16)
    torch.testing.assert_close(eager.eval()(x), compiled.eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_step_adds_up_in_one_order_whatever_came_before():
    """A resumed training must make the same bits, and knows what the state dict holds."""
    torch.manual_seed(0)
    before, batch = torch.randn(8, 16), torch.randn(5, 64, 16)
    layer = started()
    optimizer = sgd(layer)
    for x in (before, before):
        layer(x).sum().backward()
    optimizer.step()
    resumed = started(1)
    resumed.load_state_dict(layer.state_dict())
    gradients = []
    for model in (layer, resumed):
        model.zero_grad()
        sum((model(x) * x).square().sum() for x in batch).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_model_that_was_only_run_is_not_told_of(caplog):
    layer, other = started(), started()
    layer(torch.randn(32, 16))
    optimizer = sgd(other)
    for _ in range(3):
        other(torch.randn(32, 16)).sum().backward()
        optimizer.step()
    assert not caplog.records
