"""One oneDNN layer against the fake-quantized layer that it comes from; ``test_avx2`` runs this file without VNNI."""

from __future__ import annotations

import copy
import os
import pickle

import pytest
import torch
from quantized_inputs import QUANTIZERS, activations
from torch import nn

from qsam2_ao.deploy.inputs import ActivationQuantizer
from qsam2_ao.deploy.kernels.codes import CodeGrid
from qsam2_ao.deploy.onednn.codes import OneDNNCodes
from qsam2_ao.deploy.onednn.linear import lower_onednn, why_not_onednn
from qsam2_ao.deploy.onednn.processor import saturates, why_no_onednn
from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.deploy.portable import lower_packed
from qsam2_ao.errors import CheckpointError, UnsupportedLayerError
from qsam2_ao.workflow.doctor import cpu_features

REASON = why_no_onednn(torch.device("cpu"))
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
ONLY_AVX2 = os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2" or not {"avx_vnni", "avx512_vnni"} & set(cpu_features())


def packed_like(weight: torch.Tensor, bits: int, zero_point: float | None = None, **group: int) -> PackedIntxTensor:
    """Random codes, those of 8 bits with neighbours at both ends, whose products saturate."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, weight.shape, generator=generator)
    if bits == 8:
        codes[: len(codes) // 2] = codes[: len(codes) // 2].sign() * 255
    shape = (weight.shape[0], -(-weight[0].numel() // group["group_size"])) if group else (weight.shape[0],)
    scale = torch.rand(shape, generator=generator) / weight[0].numel() ** 0.5 / 2**bits
    zero = (2**bits - 1) / 2 if zero_point is None else zero_point
    return PackedIntxTensor.from_codes(codes, scale, torch.full_like(scale, zero), bits, **group)


def both(
    layer: nn.Linear | nn.Conv2d, packed: PackedIntxTensor, quantizer: ActivationQuantizer, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the oneDNN layer gives, and what the quantizer and the packed layer give in float."""
    lowered = lower_onednn(layer, packed, quantizer)
    return lowered(OneDNNCodes(CodeGrid.of(quantizer))(x)), lower_packed(layer, packed)(quantizer(x))


@pytest.mark.skipif(not ONLY_AVX2, reason="has VNNI; test_avx2 runs this without")
def test_these_products_saturate_where_avx2_is_all_there_is() -> None:
    """And halves of the largest codes and weights, which neighbours of the same sign add up, do not."""
    assert saturates()
    layer = nn.Linear(512, 6, bias=False)
    codes = torch.randint(0, 256, layer.weight.shape, generator=torch.Generator().manual_seed(0))
    codes[0], codes[1] = 0, 255  # weights of -128 and 127
    packed = PackedIntxTensor.from_codes(codes, torch.ones(1), torch.full((1,), 128.0), 8)
    lowered = lower_onednn(layer, packed, ActivationQuantizer(0, 255, 1.0, 0.0))
    assert lowered.halves
    x = torch.full((40, 512), 255)
    assert torch.equal(lowered(x.to(torch.uint8)).long(), x @ (codes - 128).T), "exact integers"


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize(
    ("bits", "zero_point"),
    [(2, 1.5), (2, 2.0), (3, 3.5), (3, 4.0), (4, 7.5), (4, 8.0), (4, 3.0), (5, 15.5), (7, 63.5), (8, 128.0)],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 50])
@torch.no_grad()
def test_linear(bits: int, zero_point: float, quantizer: ActivationQuantizer, bias: bool, rows: int) -> None:
    layer = nn.Linear(111, 40, bias=bias)
    x = activations(quantizer, 2, rows, 111)
    actual, expected = both(layer, packed_like(layer.weight, bits, zero_point), quantizer, x)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "bits"),
    [
        (nn.Conv2d(8, 20, 1), 4),
        (nn.Conv2d(3, 96, 7, stride=4, padding=3), 4),
        (nn.Conv2d(3, 96, 7, stride=4, padding=3), 8),
        (nn.Conv2d(5, 12, (3, 1), stride=(2, 1), padding=(1, 0), bias=False), 8),
        (nn.Conv2d(16, 16, 7, padding=3, groups=16), 4),
        (nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2), 3),
    ],
    ids=repr,
)
@pytest.mark.parametrize("channels_last", [True, False])
@torch.no_grad()
def test_convolution(layer: nn.Conv2d, bits: int, channels_last: bool) -> None:
    x = activations(QUANTIZERS["8 bits"], 2, layer.in_channels, 24, 20)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    # Code 0 of this quantizer is far from zero: padding must be the code of zero.
    weight = packed_like(layer.weight, bits, 128.0 if bits == 8 else None)
    actual, expected = both(layer, weight, QUANTIZERS["8 bits"], x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Linear(64, 4, bias=False), nn.Conv2d(16, 4, 2, bias=False)], ids=repr)
@pytest.mark.parametrize("code", [0, 255])
@torch.no_grad()
def test_the_largest_products_do_not_saturate(layer: nn.Linear | nn.Conv2d, code: int) -> None:
    weight = packed_like(layer.weight, 8, 128.0)
    weight = PackedIntxTensor.from_codes(torch.full(weight.shape, code), torch.ones(4), torch.full((4,), 128.0), 8)
    quantizer = ActivationQuantizer(0, 255, 1.0, 0.0)
    lowered = lower_onednn(layer, weight, quantizer)
    assert lowered.halves == saturates()
    out = lowered(torch.full((1, *layer.weight.shape[1:]), 255, dtype=torch.uint8))
    assert bool((out == 255 * (code - 128) * 64).all())


@pytest.mark.parametrize(("bits", "high", "halves"), [(4, 255, False), (7, 255, True), (8, 255, True), (8, 15, False)])
def test_only_what_would_saturate_is_halved(bits: int, high: int, halves: bool) -> None:
    quantizer = ActivationQuantizer(0, high, 0.1, 0.0)
    packed = packed_like(torch.ones(4, 8), bits, None if bits < 8 else 128.0)
    assert lower_onednn(nn.Linear(8, 4), packed, quantizer).halves == (halves and saturates())


@torch.no_grad()
def test_zero_points_of_each_output() -> None:
    layer, quantizer = nn.Linear(32, 6), QUANTIZERS["8 bits"]
    codes = torch.randint(0, 16, (6, 32), dtype=torch.uint8)
    packed = PackedIntxTensor.from_codes(codes, torch.rand(6), torch.tensor([0.0, 3.0, 7.5, 8.0, 11.0, 15.0]), 4)
    actual, expected = both(layer, packed, quantizer, activations(quantizer, 9, 32))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize("large", [False, True])
def test_rounding_is_that_of_training_in_any_layout(quantizer: ActivationQuantizer, large: bool) -> None:
    x = activations(quantizer, 3, 5, 8, 2**14 if large else 4)
    grid = CodeGrid.of(quantizer)
    layouts = (x, x.to(memory_format=torch.channels_last), x.transpose(1, 3), x[:, :, ::2], x[:1].expand(2, -1, -1, -1))
    for values in (*layouts, x[:0], x.half()):
        codes = OneDNNCodes(grid)(values)
        assert codes.dtype == torch.uint8
        assert torch.equal((codes.float() - grid.zero_point) * grid.scale, quantizer(values.float()))


@pytest.mark.parametrize("name", ["gelu", "relu"])
@torch.no_grad()
def test_activation_and_rounding_are_folded_in(name: str) -> None:
    layer, quantizer, output = nn.Linear(96, 40), QUANTIZERS["8 bits"], ActivationQuantizer(0, 255, 0.05, 30.0)
    packed = packed_like(layer.weight, 4)
    x = activations(quantizer, 200, 96)
    expected = getattr(nn.functional, name)(lower_packed(layer, packed)(quantizer(x)))
    lowered = lower_onednn(layer, packed, quantizer)
    lowered.activation = name
    codes = OneDNNCodes(lowered.input_grid)(x)
    torch.testing.assert_close(lowered(codes), expected, rtol=1e-4, atol=1e-5)
    lowered.grid = CodeGrid.of(output)
    difference = (lowered(codes).float() - 30.0) * 0.05 - output(expected)
    assert float(difference.abs().max()) < 0.0501, "at most a step"
    assert float((difference.abs() > 0.01).float().mean()) < 1e-3, "where rounding was close"


def test_what_is_not_supported_says_why() -> None:
    quantizer = QUANTIZERS["8 bits"]

    def reason(layer: nn.Module, bits: int = 4, **form: object) -> str:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        return str(why_not_onednn(layer, packed_like(weight, bits, **form), "cpu", quantizer))  # type: ignore[arg-type]

    assert reason(nn.Linear(8, 4)) == "None"
    assert "not on meta" in str(why_not_onednn(nn.Linear(8, 4), packed_like(torch.ones(4, 8), 4), "meta", quantizer))
    assert "padding with zeros, in pixels, not 'same'" in reason(nn.Conv2d(8, 8, 3, padding="same"))
    assert "not 'circular'" in reason(nn.Conv2d(8, 8, 3, padding_mode="circular"))
    assert "zero points of 1.25" in reason(nn.Linear(8, 4), bits=2, zero_point=1.25)
    assert "8-bit weights with zero points of 120.0" in reason(nn.Linear(8, 4), bits=8, zero_point=120.0)
    assert ("saturate" in reason(nn.Conv2d(8, 8, 3, groups=8), bits=8, zero_point=128.0)) == saturates()
    layer = nn.Conv2d(8, 8, 3, padding="same")
    with pytest.raises(UnsupportedLayerError, match="cannot lower this layer to oneDNN"):
        lower_onednn(layer, packed_like(layer.weight, 4), quantizer)


@pytest.mark.parametrize(
    ("inputs", "bits", "zero_point", "code", "fits"),
    [
        (66310, 8, 128.0, 255, True),
        (66316, 8, 128.0, 255, False),
        (65793, 8, 128.0, 0, True),
        (65794, 8, 128.0, 0, False),  # of -128
        (200000, 8, 128.0, 130, True),  # small weights: their sums are looked at
        (500000, 4, 7.5, 15, True),
        (600000, 4, 7.5, 15, False),  # on the mid-rise grid values are doubled
    ],
)
def test_sums_beyond_32_bits_stay_packed(inputs: int, bits: int, zero_point: float, code: int, fits: bool) -> None:
    codes = torch.full((2, inputs), code, dtype=torch.uint8)
    packed = PackedIntxTensor.from_codes(codes, torch.ones(2), torch.full((2,), zero_point), bits)
    layer = nn.utils.skip_init(nn.Linear, inputs, 2)
    reason = why_not_onednn(layer, packed, "cpu", ActivationQuantizer(0, 255, 0.1, 0.0))
    assert fits == (reason is None)
    assert fits or "beyond 32 bits" in str(reason)


@pytest.mark.parametrize("zero_point", [-(2.0**40), 2.0**15, 2.0**16, 2.0**17 + 8, 1e30])
def test_zero_points_far_from_all_codes_stay_packed(zero_point: float) -> None:
    packed = packed_like(torch.ones(4, 8), 4, zero_point)
    reason = why_not_onednn(nn.Linear(8, 4), packed, "cpu", ActivationQuantizer(0, 255, 0.1, 0.0))
    assert "no 4-bit weights with zero points" in str(reason)


@pytest.mark.parametrize("layer", [nn.Linear(9, 4), nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(6, 4, 3)], ids=repr)
@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_a_layer_is_copied_and_pickled_but_neither_saved_nor_moved_nor_shared(
    layer: nn.Linear | nn.Conv2d, bits: int
) -> None:
    bits = 4 if isinstance(layer, nn.Conv2d) and layer.groups > 1 else bits
    lowered = lower_onednn(layer, packed_like(layer.weight, bits, 2.0 ** (bits - 1)), QUANTIZERS["8 bits"])
    x = torch.randint(0, 256, (2, *layer.weight.shape[1:]), dtype=torch.uint8)
    x = torch.cat([x, x], 1) if isinstance(layer, nn.Conv2d) and layer.groups > 1 else x
    for other in (copy.deepcopy(lowered), pickle.loads(pickle.dumps(lowered)), lowered.bfloat16()):
        assert torch.equal(other(x), lowered(x))
    with pytest.raises(CheckpointError, match='target="packed"'):
        lowered.state_dict()
    with pytest.raises(UnsupportedLayerError, match="cannot move to meta"):
        lowered.to("meta")
    with pytest.raises(UnsupportedLayerError, match="share its memory"):
        lowered.share_memory()


def test_what_was_pickled_with_vnni_is_refused_without() -> None:
    lowered = lower_onednn(nn.Linear(8, 4), packed_like(torch.ones(4, 8), 8, 128.0), QUANTIZERS["8 bits"])
    lowered._weight = lowered._pack(torch.full((4, 8), 127, dtype=torch.int8))
    lowered.halves = False
    if saturates():
        with pytest.raises(CheckpointError, match="pickled on a CPU with VNNI"):
            copy.deepcopy(lowered)
    else:
        assert torch.equal(copy.deepcopy(lowered)._dense(), lowered._dense())


def test_no_rows_keep_their_sizes() -> None:
    layer, quantizer = nn.Linear(16, 6), QUANTIZERS["8 bits"]
    actual, expected = both(layer, packed_like(layer.weight, 4), quantizer, torch.empty(0, 7, 16))
    assert actual.shape == expected.shape == (0, 7, 6)
