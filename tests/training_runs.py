"""A small model that a resumed training could get wrong, and runs of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from qsam2_ao.training.loop import train


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
