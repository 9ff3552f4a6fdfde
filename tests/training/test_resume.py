from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_runs import Noisy, assert_equal_states, batch_of, run, squared, stream

from qsam2_ao.errors import CheckpointError
from qsam2_ao.interrupts import INTERRUPTS
from qsam2_ao.training.loop import read_checkpoint, train


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
