from __future__ import annotations

import pytest
import torch
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, get_default_qat_qconfig

from qsam2_ao.benchmark.accuracy.rivals import MinMaxFakeQuantize


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_eight_bits_are_torch_aos_default():
    default = get_default_qat_qconfig("fbgemm", version=0).weight()
    ours = MinMaxFakeQuantize(8, is_weight=True)
    for step in range(3):
        weight = random(4, 30, seed=step)
        assert torch.equal(ours(weight), default(weight))
    assert torch.equal(ours.scale, default.scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_training_is_torch_aos(bits):
    theirs = FakeQuantize(MovingAverageMinMaxObserver, 0, 2**bits - 1, dtype=torch.quint8)
    ours = MinMaxFakeQuantize(bits)
    for step in range(3):
        leaves = [(random(50, seed=step) * (step + 1)).requires_grad_() for _ in range(2)]
        outputs = [quantizer(leaf) for quantizer, leaf in zip((ours, theirs), leaves, strict=True)]
        for output in outputs:
            output.square().sum().backward()
        assert torch.equal(*outputs)
        assert torch.equal(leaves[0].grad, leaves[1].grad)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_start_from_their_largest(bits):
    weight = random(4, 3, 5)
    quantizer = MinMaxFakeQuantize(bits, is_weight=True)
    quantizer.initialize(weight)
    steps = (2**bits - 1) / 2
    torch.testing.assert_close(quantizer.scale, weight.abs().amax((1, 2)) / steps)


def test_a_block_without_data_changes_nothing():
    quantizer = MinMaxFakeQuantize(8)
    quantizer.initialize(random(50))
    before = quantizer.scale.clone()
    with quantizer.calibrating():
        pass
    assert quantizer.is_initialized
    assert torch.equal(quantizer.scale, before)
