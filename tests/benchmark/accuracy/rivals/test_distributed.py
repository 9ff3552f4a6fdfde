"""Two data-parallel ranks with different data keep equal ranges."""

from __future__ import annotations

import pytest
import torch
from data_parallel import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qsam2_ao.benchmark.accuracy.rivals import rival_qconfig

LEARNED = ("lsq", "lsq+", "pact-sawb", "torchao")


class Layer(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        qconfig = rival_qconfig(method, 4, 4)
        self.weight_fake_quant, self.input_fake_quant = qconfig.weight(), qconfig.activation()
        self.weight_fake_quant.initialize(self.linear.weight)

    def forward(self, x):
        return nn.functional.linear(self.input_fake_quant(x), self.weight_fake_quant(self.linear.weight))


def batch(rank, step):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(16 * (rank + 1), 8, generator=generator) * (1 + rank) + rank


def train(rank):
    states = {}
    for method in LEARNED:
        torch.manual_seed(0)
        layer = Layer(method)
        layer.linear.bias = None
        model = DistributedDataParallel(layer)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            model(batch(rank, step)).square().mean().backward()
            optimizer.step()
        calibrated = rival_qconfig(method, 4, 4).activation()
        with calibrated.calibrating():
            calibrated(batch(rank, 0))
        states[method] = {"trained": layer.state_dict(), "calibrated": calibrated.state_dict()}
    return states


@pytest.mark.slow
def test_ranks_hold_the_same_ranges(tmp_path):
    first, second = run_ranks(train, tmp_path)
    for method in LEARNED:
        for part in ("trained", "calibrated"):
            for key, value in first[method][part].items():
                assert torch.equal(value, second[method][part][key]), (method, key)
