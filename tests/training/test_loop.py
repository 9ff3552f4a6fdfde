from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from lsc_layers import Layer
from threads import at_once
from torch import nn
from training_runs import Noisy, assert_equal_states, batch_of, run, squared, stream

from qsam2_ao.errors import DataError, NonFiniteError
from qsam2_ao.training.loop import read_checkpoint, train


def test_learns_and_averages():
    model = Noisy()
    before = copy.deepcopy(model.state_dict())
    result = run(model.eval(), stream(200), steps=200)
    assert not model.training
    assert np.mean(result.losses[-10:]) < 0.5 * np.mean(result.losses[:10])
    assert result.step == len(result.losses) == 200
    assert result.average["calls"] == 200
    averaged = result.average["linear.weight"]
    final, first = model.linear.weight, before["linear.weight"]
    assert 0 < (averaged - final).norm() < (averaged - first).norm()


def test_no_average_unless_asked():
    assert run(Noisy(), stream(3), steps=3, ema=None).average is None


def test_same_seed_same_bits_and_global_generator_untouched():
    first, second, other = Noisy(), Noisy(), Noisy()
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    run(first, stream(5), steps=5)
    assert torch.equal(torch.rand(2), expected)
    run(second, stream(5), steps=5)
    run(other, stream(5), steps=5, seed=1)
    assert_equal_states(first.state_dict(), second.state_dict())
    assert not torch.equal(first.linear.weight, other.linear.weight)


def test_trainings_in_threads_take_turns():
    alone, *together = (Noisy() for _ in range(4))
    run(alone, stream(5), steps=5)
    before = torch.get_rng_state()
    at_once(*(partial(run, model, stream(5), steps=5) for model in together))
    assert torch.equal(torch.get_rng_state(), before)
    for model in together:
        assert_equal_states(model.state_dict(), alone.state_dict())


class Gather(nn.Module):
    """Rows taken several times, as the features of a frame are for each of its objects."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(576, 2, 32, generator=torch.Generator().manual_seed(0)))

    def forward(self, batch):
        assert torch.are_deterministic_algorithms_enabled()  # some runs would agree without
        return self.rows[:, torch.arange(2).repeat(32)] * batch


def test_a_larger_model_repeats_on_several_threads(monkeypatch):
    monkeypatch.setattr("qsam2_ao.threads.SMALL_PARAMETERS", 0)
    weight = torch.randn(64, 32, 576, generator=torch.Generator().manual_seed(1)).permute(2, 0, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        models = [Gather() for _ in range(6)]
        for model in models:
            optimizer = torch.optim.SGD(model.parameters(), lr=1e4)  # an AdamW's first steps hide last bits
            options = {"optimizer": optimizer, "clip": None, "progress": False}
            train(model, lambda first: [weight] * 2, lambda y, b: y.square().mean(), steps=2, **options)
    finally:
        torch.set_num_threads(before)
    assert not torch.are_deterministic_algorithms_enabled()
    for model in models[1:]:
        assert_equal_states(models[0].state_dict(), model.state_dict())


def test_learning_rate_warms_up_and_falls_to_zero():
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rates = []
    train(
        model,
        stream(20),
        squared,
        steps=20,
        optimizer=optimizer,
        warmup=4,
        progress=False,
        forward=lambda m, b: m(b[0]),
        on_step=lambda result: rates.append(optimizer.param_groups[0]["lr"]),
    )
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.002


def test_gradients_are_clipped():
    moved = []
    for clip in (None, 1e-3):
        model = nn.Linear(6, 1)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        train(
            model,
            stream(1),
            squared,
            steps=1,
            optimizer=optimizer,
            clip=clip,
            progress=False,
            forward=lambda m, b: m(b[0]),
        )
        moved.append(model.weight.detach().norm().item())
    assert moved[1] <= 1e-3 < moved[0]


def test_autocast_runs_the_forward_in_the_dtype():
    seen = []

    def loss(output, batch):
        seen.append(output.dtype)
        return squared(output.float(), batch)

    forward = lambda m, b: m(b[0])  # noqa: E731
    train(nn.Linear(6, 1), stream(1), loss, steps=1, autocast=torch.bfloat16, forward=forward, progress=False)
    assert seen == [torch.bfloat16]


def test_frozen_parameters_stay():
    model = Noisy()
    model.linear.requires_grad_(False)
    before = model.linear.weight.clone()
    run(model, stream(3), steps=3)
    assert torch.equal(model.linear.weight, before)


def test_non_finite_loss_is_refused_and_the_last_checkpoint_kept(tmp_path):
    path = tmp_path / "checkpoint.pt"

    def batches(first):
        for step in range(first, 9):
            x, y = batch_of(step)
            yield x, y * (float("nan") if step == 5 else 1)

    with pytest.raises(NonFiniteError, match="step 5"):
        run(Noisy(), batches, steps=9, checkpoint=path, checkpoint_every=2)
    content = read_checkpoint(path)
    assert content["step"] == 4
    assert all(torch.isfinite(value).all() for value in content["model"].values())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_is_refused_before_it_is_used(tmp_path, clip):
    path = tmp_path / "checkpoint.pt"
    model = Noisy()

    def loss(output, batch):
        # Zero, with the slope of a square root there.
        return (output * 0).sum().sqrt() if model.calls == 6 else squared(output, batch)

    said = r"step 5: the norm of the gradient is nan; the gradient of .* is not finite"
    with pytest.raises(NonFiniteError, match=said):
        train(model, stream(9), loss, steps=9, clip=clip, checkpoint=path, checkpoint_every=2, progress=False)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert read_checkpoint(path)["step"] == 4


def test_too_few_batches_are_refused():
    with pytest.raises(ValueError, match="ended after step 3 of 20"):
        run(Noisy(), stream(3))


def test_every_module_keeps_its_mode_also_after_an_error():
    model = Noisy()
    model.dropout.eval()
    modes = [module.training for module in model.modules()]
    run(model, stream(2), steps=2)
    assert [module.training for module in model.modules()] == modes

    def no_batches(first):
        raise DataError("no disk")

    with pytest.raises(DataError, match="no disk"):
        train(model.eval(), no_batches, squared, steps=2, progress=False)
    assert not model.training


def test_learned_ranges_do_not_decay():
    """Those of groups have two dimensions, as weights have."""
    layer = Layer(granularity="group", group_size=8)
    layer.weight_fake_quant.initialize(layer.linear.weight)
    alphas, weights = layer.weight_fake_quant.log_alpha, layer.linear.weight
    assert alphas.ndim == 2
    before = alphas.detach().clone(), weights.detach().clone()
    data = [torch.randn(4, 16)] * 2
    train(layer, lambda first: data[first:], lambda output, _: 0 * output.sum(), steps=2, lr=0.1, progress=False)
    assert torch.equal(alphas, before[0])
    assert not torch.equal(weights, before[1])
