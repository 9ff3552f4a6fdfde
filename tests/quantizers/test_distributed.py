"""Two data-parallel ranks with different data keep equal ranges."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from data_parallel import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qsam2_ao.calibration.gram import InputStatistics, VRCObserver
from qsam2_ao.quantizers import LSCFakeQuantize


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.weight_fake_quant = LSCFakeQuantize(4, is_weight=True)
        self.weight_fake_quant.initialize(self.linear.weight)
        self.input_fake_quant = LSCFakeQuantize(8)

    def forward(self, x):
        weight = self.weight_fake_quant(self.linear.weight)
        return nn.functional.linear(self.input_fake_quant(x), weight, self.linear.bias)


def batch(rank, step):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(16 * (rank + 1), 8, generator=generator) * (1 + rank) + rank


def train(rank):
    torch.manual_seed(0)
    layer = Layer()
    model = DistributedDataParallel(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(batch(rank, step)).square().mean().backward()
        optimizer.step()
    calibrated = LSCFakeQuantize(8)
    with calibrated.calibrating():
        calibrated(batch(rank, 0))
    observer = VRCObserver()
    observer(batch(rank, 0))
    observer.synchronize()
    return {
        "state": layer.state_dict(),
        "calibrated": calibrated.state_dict(),
        "inputs": observer.statistics()._asdict(),
    }


class Branches(nn.Module):
    """Layers that are called on some ranks only, or more often there."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.extra = Layer(), Layer(), Layer()

    def forward(self, x, clicks, extra):
        x = self.stem(x)
        for _ in range(clicks):
            x = self.head(x)
        return self.extra(x) if extra else x


def train_unevenly(rank):
    torch.manual_seed(0)
    counts = []
    for collective in ("all_gather", "all_reduce", "all_gather_object", "broadcast"):
        count(collective, counts)
    model = DistributedDataParallel(Branches(), find_unused_parameters=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    states, per_step = [], []
    for step in range(4):
        optimizer.zero_grad()
        before = len(counts)
        for micro in range(2):
            model(batch(rank, 2 * step + micro), 1 + 3 * rank, extra=rank == step % 2).square().mean().backward()
        optimizer.step()
        per_step.append(len(counts) - before)
        states.append({key: value.clone() for key, value in model.module.state_dict().items()})
    only_here = LSCFakeQuantize(8)
    with only_here.calibrating():
        if rank == 0:
            only_here(batch(0, 0))
    nowhere = LSCFakeQuantize(8)
    with nowhere.calibrating():
        pass
    inputs, unseen = VRCObserver(), VRCObserver()
    if rank == 0:
        inputs(batch(0, 0))
    inputs.synchronize()
    unseen.synchronize()
    return {
        "states": states,
        "collectives": per_step,
        "only": only_here.state_dict(),
        "no": nowhere.is_initialized,
        "inputs": inputs.state_dict(),
        "unseen": unseen.n,
    }


def count(name, calls):
    original = getattr(dist, name)

    def counted(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)

    setattr(dist, name, counted)


@pytest.mark.slow
def test_ranks_that_do_different_work_finish_with_equal_ranges(tmp_path):
    first, second = run_ranks(train_unevenly, tmp_path, seconds=120)
    for step, (a, b) in enumerate(zip(first["states"], second["states"], strict=True)):
        for key in a:
            if not key.startswith("extra.weight_fake_quant") or "log_alpha" in key or "alpha_bar" in key:
                # (The statistics of a weight that a rank does not use are none that it uses.)
                assert torch.equal(a[key], b[key]), (step, key)
    # One for all ranges, behind the optimizer's step.
    assert first["collectives"] == second["collectives"] == [1, 1, 1, 1]
    for key, value in first["only"].items():
        assert torch.equal(value, second["only"][key]), key
    assert first["only"]["initialized"] == 1
    assert not first["no"]
    alone = VRCObserver()
    alone(batch(0, 0))
    for rank in (first, second):
        assert rank["unseen"] == 0
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(rank["inputs"][key], value, rtol=1e-12, atol=1e-12)


def train_whole(rank):
    """Two ranks with half a batch each, or one rank's worth of work on all of it."""
    torch.manual_seed(0)
    layer = Layer()
    model = DistributedDataParallel(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.cat([batch(0, 0), batch(1, 0)])
    with layer.input_fake_quant.calibrating():
        layer(x)
    for _ in range(2):
        optimizer.zero_grad()
        model(x[rank::2]).square().mean().backward()
        optimizer.step()
    return layer.input_fake_quant.state_dict()


@pytest.mark.slow
def test_ranks_pool_their_statistics_as_one_batch_has_them(tmp_path):
    parts, _ = run_ranks(train_whole, tmp_path)
    torch.manual_seed(0)
    layer = Layer()
    x = torch.cat([batch(0, 0), batch(1, 0)])
    with layer.input_fake_quant.calibrating():
        layer(x)
    layer(x)
    for key in ("mean", "std", "low", "high"):
        torch.testing.assert_close(parts[key], getattr(layer.input_fake_quant, key))


@pytest.mark.slow
def test_ranks_hold_the_same_ranges(tmp_path):
    first, second = run_ranks(train, tmp_path)
    for part in ("state", "calibrated"):
        for key, value in first[part].items():
            assert torch.equal(value, second[part][key]), key
    everything = torch.cat([batch(0, 0), batch(1, 0)])
    torch.testing.assert_close(first["calibrated"]["mean"], everything.mean().reshape(1))
    torch.testing.assert_close(first["calibrated"]["std"], everything.std(correction=0).reshape(1))
    assert first["calibrated"]["low"].item() == everything.min().item()
    inputs = InputStatistics(**first["inputs"])
    assert inputs.n == second["inputs"]["n"] == 48
    for mine, other in zip(inputs[1:], list(second["inputs"].values())[1:], strict=True):
        assert torch.equal(mine, other)
    torch.testing.assert_close(inputs.gram, everything.double().T @ everything.double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(inputs.mean, everything.double().mean(0), rtol=1e-6, atol=1e-6)
