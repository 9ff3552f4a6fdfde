import warnings

import pytest
import torch
from torch import nn

from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.deploy.portable import lower_packed, why_not_packed
from qsam2_ao.errors import UnsupportedLayerError


def packed_like(weight: torch.Tensor, bits: int = 4) -> PackedIntxTensor:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, weight.shape, generator=generator)
    scale = torch.rand(weight.shape[0], generator=generator) + 0.1
    return PackedIntxTensor.from_codes(codes, scale, torch.full_like(scale, (2**bits - 1) / 2), bits)


LAYERS = [
    nn.Linear(7, 3),
    nn.Linear(7, 3, bias=False),
    nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=2, groups=2),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", bias=False),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_the_lowered_layer_computes_the_float_layer_of_its_weight(layer: nn.Linear | nn.Conv2d) -> None:
    before = layer.weight.detach().clone()
    packed = packed_like(layer.weight)
    lowered = lower_packed(layer.eval(), packed)
    assert type(lowered) is type(layer)
    assert isinstance(lowered.weight, PackedIntxTensor)
    assert not lowered.weight.requires_grad
    assert lowered.bias is layer.bias
    assert not lowered.training
    assert lower_packed(layer.train(), packed).training
    assert torch.equal(layer.weight, before), "the module that is lowered is left as it was"
    assert lowered.extra_repr() == layer.extra_repr()

    x = torch.randn((2, 7) if isinstance(layer, nn.Linear) else (2, 4, 12, 12))
    layer.weight.data = packed.dequantize()
    expected = layer(x)
    layer.weight.data = before
    assert torch.equal(lowered(x), expected)


def test_a_fake_quantized_layer_becomes_a_plain_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.nn import qat
        from torch.ao.quantization import get_default_qat_qconfig

        trained = qat.Linear(7, 3, qconfig=get_default_qat_qconfig())
    lowered = lower_packed(trained, packed_like(trained.weight))
    assert type(lowered) is nn.Linear
    assert lowered.bias is trained.bias


def test_a_layer_on_the_meta_device_and_a_move() -> None:
    layer = nn.Linear(7, 3, bias=False, device="meta")
    real = packed_like(torch.empty(3, 7))
    assert torch.equal(lower_packed(layer, real)(torch.eye(7)), real.dequantize().t())
    moved = lower_packed(nn.Linear(7, 3), real, "meta")
    assert moved.weight.device.type == moved.bias.device.type == "meta"


class Odd(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize("module", [nn.ConvTranspose2d(7, 3, 1), nn.LayerNorm(7), nn.Conv1d(7, 3, 1), Odd(7, 3)])
def test_other_modules_are_refused_by_class(module: nn.Module) -> None:
    packed = packed_like(torch.empty(3, 7))
    reason = why_not_packed(module, packed)
    assert reason is not None
    assert type(module).__name__ in reason
    with pytest.raises(UnsupportedLayerError, match=r"neither nn\.Linear nor nn\.Conv2d"):
        lower_packed(module, packed)


def test_another_shape_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"Linear is \[3, 8\], the codes \[3, 7\]"):
        lower_packed(nn.Linear(8, 3), packed_like(torch.empty(3, 7)))
