"""Two data-parallel ranks with different data keep equal ranges."""

from __future__ import annotations

import pytest
import torch
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
