from __future__ import annotations

import pytest
import torch
from torch import nn
from torchao.quantization.granularity import PerToken
from torchao.quantization.qat import (
    FakeQuantizedLinear,
    IntxFakeQuantizeConfig,
    IntxFakeQuantizer,
    initialize_fake_quantizers,
)

from qsam2_ao.benchmark.accuracy.rivals import TorchAOFakeQuantize


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_torchao_computes_what_its_own_module_computes(bits):
    config = IntxFakeQuantizeConfig(
        getattr(torch, f"int{bits}"), "per_channel", is_dynamic=False, range_learning=True, is_symmetric=True
    )
    theirs = FakeQuantizedLinear(32, 8, bias=False, weight_config=config)
    x = random(4, 32)
    initialize_fake_quantizers(theirs, (x,))
    ours = TorchAOFakeQuantize(bits, is_weight=True)
    ours.initialize(theirs.weight)
    wanted = theirs(x)
    wanted.square().sum().backward()
    got = nn.functional.linear(x, ours(theirs.weight))
    torch.testing.assert_close(got, wanted)
    got.square().sum().backward()
    torch.testing.assert_close(ours.scale.grad, theirs.weight_fake_quantizer.scale.grad.reshape(-1))


def test_a_convolution_is_a_matrix_of_its_output_channels():
    weight = random(6, 4, 3, 3)
    conv, matrix = (TorchAOFakeQuantize(2, is_weight=True) for _ in range(2))
    conv.initialize(weight)
    matrix.initialize(weight.reshape(6, -1))
    assert torch.equal(conv(weight), matrix(weight.reshape(6, -1)).reshape(weight.shape))


@pytest.mark.parametrize("bits", [4, 8])
def test_an_activation_is_one_token_of_torchaos(bits):
    x, upstream = (random(3, 5, 8) + 0.4), random(3, 5, 8, seed=1)
    config = IntxFakeQuantizeConfig(
        getattr(torch, f"int{bits}"),
        PerToken(),
        is_symmetric=False,
        is_dynamic=False,
        range_learning=True,
        zero_point_precision=torch.float32,
    )
    theirs = IntxFakeQuantizer(config)
    theirs._initialized = True
    row = x.reshape(1, -1).clone().requires_grad_()
    wanted = theirs(row)
    wanted.backward(upstream.reshape(1, -1))
    ours = TorchAOFakeQuantize(bits)
    with ours.calibrating():
        ours(x)
    leaf = x.clone().requires_grad_()
    got = ours(leaf)
    got.backward(upstream)
    torch.testing.assert_close(got, wanted.reshape(x.shape))
    torch.testing.assert_close(leaf.grad, row.grad.reshape(x.shape))
    torch.testing.assert_close(ours.scale.grad, theirs.scale.grad.reshape(-1))
    torch.testing.assert_close(ours.zero_point.grad, theirs.zero_point.grad.reshape(-1))
    assert float(ours.calculate_qparams()[1]) == float(theirs.zero_point)
