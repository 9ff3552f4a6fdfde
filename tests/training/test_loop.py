from __future__ import annotations

import copy
import os
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from qsam2_ao.errors import CheckpointError, NonFiniteError
from qsam2_ao.interrupts import INTERRUPTS
from qsam2_ao.training.loop import read_checkpoint, train


class Noisy(nn.Module):
    """Dropout, a running buffer, an integer buffer, a generator: everything that a resume could forget."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.3)
        self.rng = np.random.default_rng(42)  # as SAM2Train
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def forward(self, batch):
        self.calls += self.training
        x = self.dropout(self.norm(self.linear(batch[0])).relu())
        return self.out(x) + 0.01 * self.rng.standard_normal()


def batch_of(step):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True)


def stream(steps, stop_at=None, error=KeyboardInterrupt):
    def start(first):
        for step in range(first, steps):
            if step == stop_at:
                raise error
            yield batch_of(step)

    return start


def squared(output, batch):
    return (output - batch[1]).square().mean()


def run(model, batches, steps=20, **options):
    return train(model, batches, squared, steps=steps, lr=0.02, progress=False, **{"ema": 0.9, **options})


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


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


@pytest.mark.parametrize("stop_at", [1, 7, 19])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, stop_at):
    whole = Noisy()
    expected = run(whole, stream(20))
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        run(Noisy(), stream(20, stop_at), checkpoint=path, checkpoint_every=1000)
    assert read_checkpoint(path)["step"] == stop_at
    resumed = Noisy()
    result = run(resumed, stream(20), checkpoint=path)
    assert_equal_states(whole.state_dict(), resumed.state_dict())
    assert_equal_states(expected.average, result.average)
    assert result.losses == expected.losses


def test_saves_by_the_clock(tmp_path):
    path = tmp_path / "checkpoint.pt"
    steps = []
    run(
        Noisy(),
        stream(6),
        steps=6,
        checkpoint=path,
        checkpoint_every=1000,
        checkpoint_minutes=0,
        on_step=lambda result: steps.append(read_checkpoint(path)["step"]),
    )
    assert steps == [1, 2, 3, 4, 5, 6]


def test_another_schedule_sets_the_rates_and_lets_the_steps_change(tmp_path):
    path = tmp_path / "checkpoint.pt"
    still = Noisy()
    before = {name: value.clone() for name, value in still.state_dict().items()}
    run(still, stream(3), steps=3, schedule=lambda step: 0.0, checkpoint=path)
    assert_equal_states({name: before[name] for name, _ in still.named_parameters()}, dict(still.named_parameters()))
    longer = Noisy()
    result = run(longer, stream(5), steps=5, schedule=lambda step: 1.0, checkpoint=path)
    assert result.step == 5
    with pytest.raises(CheckpointError):
        run(Noisy(), stream(7), steps=7, checkpoint=path)


def test_a_finished_checkpoint_is_only_loaded(tmp_path):
    path = tmp_path / "checkpoint.pt"
    first = Noisy()
    run(first, stream(5), steps=5, checkpoint=path)
    written = path.stat().st_mtime_ns
    second = Noisy()
    result = run(second, stream(5, stop_at=0), steps=5, checkpoint=path)
    assert result.step == 5
    assert path.stat().st_mtime_ns == written
    assert_equal_states(first.state_dict(), second.state_dict())


@pytest.mark.parametrize("number", INTERRUPTS)
def test_a_signal_waits_for_the_step(tmp_path, number):
    """In the middle of a step: the step is finished and saved, then KeyboardInterrupt is raised."""
    path = tmp_path / "checkpoint.pt"
    finished = []

    def loss(output, batch):
        if len(finished) == 3:
            signal.raise_signal(number)
        return squared(output, batch)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(
            Noisy(),
            stream(20),
            loss,
            steps=20,
            checkpoint=path,
            progress=False,
            on_step=lambda result: finished.append(result.step),
        )
    assert signal.getsignal(number) is before
    content = read_checkpoint(path)
    assert content["step"] == 4
    assert content["model"]["calls"] == 4


class StopsWithin(torch.optim.AdamW):
    """Is told twice to stop when it has updated the weights for the fourth time."""

    updates = 0

    def step(self, closure=None):
        super().step(closure)
        self.updates += 1
        if self.updates == 4:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)


def test_a_second_signal_leaves_the_last_whole_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    models = [Noisy(), Noisy(), Noisy()]
    expected = run(models[0], stream(6), steps=6, optimizer=torch.optim.AdamW(models[0].parameters(), 0.02))
    with pytest.raises(KeyboardInterrupt):
        run(
            models[1],
            stream(6),
            steps=6,
            optimizer=StopsWithin(models[1].parameters(), 0.02),
            checkpoint=path,
            checkpoint_every=2,
        )
    assert read_checkpoint(path)["step"] == 2
    optimizer = torch.optim.AdamW(models[2].parameters(), 0.02)
    assert run(models[2], stream(6), steps=6, optimizer=optimizer, checkpoint=path).losses == expected.losses
    assert_equal_states(models[0].state_dict(), models[2].state_dict())


def test_ranges_are_looked_at_as_often_as_a_checkpoint_is_due(monkeypatch):
    seconds, looks = iter(range(1000)), []
    monkeypatch.setattr("qsam2_ao.training.loop.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr("qsam2_ao.training.loop.check_ranges", looks.append)
    run(Noisy(), stream(60), steps=60, checkpoint_minutes=10 / 60)
    assert 3 <= len(looks) <= 7


@pytest.mark.parametrize(("name", "value"), [("settings", None), ("losses", [1.0]), ("step", None), ("average", 3)])
def test_a_checkpoint_with_a_damaged_part_is_refused(tmp_path, name, value):
    path = tmp_path / "checkpoint.pt"
    run(Noisy(), stream(1), steps=1, checkpoint=path)
    content = torch.load(path, weights_only=True)
    torch.save({key: kept for key, kept in {**content, name: value}.items() if kept is not None}, path)
    with pytest.raises(CheckpointError, match=f"checkpoint.pt is damaged: its '{name}' is"):
        run(Noisy(), stream(2), steps=2, checkpoint=path)


def test_control_c_while_waiting_for_data(tmp_path):
    path = tmp_path / "checkpoint.pt"

    def batches(first):
        yield batch_of(0)
        signal.raise_signal(signal.SIGINT)
        yield batch_of(1)

    with pytest.raises(KeyboardInterrupt):
        run(Noisy(), batches, checkpoint=path)
    assert read_checkpoint(path)["step"] == 1


def test_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(run(Noisy(), stream(3), steps=3)))
    thread.start()
    thread.join()
    assert results[0].step == 3


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


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(path)
    run(Noisy(), stream(2), steps=2, checkpoint=path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(CheckpointError, match="damaged"):
        run(Noisy(), stream(2), steps=2, checkpoint=path)
    torch.save({"model": {}}, path)
    torch.save({"format": "qsam2_ao.training/1", "model": {}}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="older version"):
        read_checkpoint(tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        run(Noisy(), stream(2), steps=2, checkpoint=path)


def test_a_checkpoint_of_other_settings_or_models_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    run(Noisy(), stream(2), steps=2, checkpoint=path)
    with pytest.raises(CheckpointError, match="'steps': 3"):
        run(Noisy(), stream(3), steps=3, checkpoint=path)
    with pytest.raises(CheckpointError, match="does not fit"):
        run(nn.Linear(6, 1), stream(2), steps=2, checkpoint=path)


def test_checkpoints_hold_no_code(tmp_path):
    """A pickle that would run something on load is refused, not run."""
    path, trap = tmp_path / "checkpoint.pt", tmp_path / "trap"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    torch.save({"format": "qsam2_ao.training/1", "model": Evil()}, path)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not trap.exists()
