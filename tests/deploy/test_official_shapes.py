"""Every shape of layer in the official sizes, by every target, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qsam2_ao import build_official
from qsam2_ao.deploy.inputs import ActivationQuantizer
from qsam2_ao.deploy.int4 import lower_int4
from qsam2_ao.deploy.kernels.codes import CodeGrid, QuantizeCodes
from qsam2_ao.deploy.kernels.linear import lower_int8
from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.deploy.portable import lower_packed
from qsam2_ao.deploy.targets import get_target
from qsam2_ao.graph import find_parts
from qsam2_ao.models.official import OFFICIAL
from qsam2_ao.native import why_no_kernels

QUANTIZER = ActivationQuantizer(0, 255, 0.02, 117.0)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def layers() -> list[tuple[str, nn.Module]]:
    """One layer of each shape, with the name of the first that has it."""
    different: dict[str, tuple[str, nn.Module]] = {}
    for size in sorted(OFFICIAL):
        model = build_official(size, image_size=64)
        for part in find_parts(model):
            for name, layer in model.get_submodule(part.path).named_modules(prefix=part.path):
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    different.setdefault(repr(layer), (f"{size}'s {name}", layer))
    return list(different.values())


def packed_like(layer: nn.Module, bits: int) -> PackedIntxTensor:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, layer.weight.shape, generator=generator)
    scale = torch.rand(len(codes), generator=generator) / layer.weight[0].numel() ** 0.5
    return PackedIntxTensor.from_codes(codes, scale, torch.full_like(scale, (2**bits - 1) / 2), bits)


def input_of(layer: nn.Module) -> torch.Tensor:
    shape = (2, 5, layer.in_features) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 20, 12)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def in_double(layer: nn.Module, packed: PackedIntxTensor, x: torch.Tensor) -> torch.Tensor:
    weight, bias = packed.dequantize().double(), None if layer.bias is None else layer.bias.double()
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x.double(), weight, bias).float()
    return nn.functional.conv2d(
        x.double(), weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups
    ).float()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4])
@torch.no_grad()
def test_every_shape(layers: list[tuple[str, nn.Module]], bits: int) -> None:
    kernels, lowered = why_no_kernels() is None, set()
    for name, layer in layers:
        packed, x = packed_like(layer, bits), input_of(layer)
        expected = in_double(layer, packed, QUANTIZER(x))
        actual = lower_packed(layer, packed)(QUANTIZER(x))
        torch.testing.assert_close(actual, expected, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
        if get_target("int4").why_not("cpu", layer, packed) is None:
            lowered.add("int4")
            actual = lower_int4(layer, packed, "cpu")(QUANTIZER(x))
            torch.testing.assert_close(actual, expected, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
        if not kernels:
            continue
        reason = get_target("int8").why_not("cpu", layer, packed, QUANTIZER)
        assert (reason is None) == (getattr(layer, "groups", 1) == 1), f"{name}: {reason}"
        if reason is None:
            lowered.add("int8")
            actual = lower_int8(layer, packed, QUANTIZER, torch.float32)(QuantizeCodes(CodeGrid.of(QUANTIZER))(x))
            torch.testing.assert_close(actual, expected, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
    assert ("int8" in lowered) == kernels
    assert "int4" in lowered
