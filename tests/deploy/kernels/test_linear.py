"""One int8 layer against the fake-quantized layer that it comes from."""

from __future__ import annotations

import pytest
import torch
from quantized_inputs import QUANTIZERS, activations
from torch import nn

from qsam2_ao.deploy.inputs import ActivationQuantizer
from qsam2_ao.deploy.kernels import linear as linear_module
from qsam2_ao.deploy.kernels.codes import CodeGrid, QuantizeCodes
from qsam2_ao.deploy.kernels.linear import lower_int8, use_int8_weights, why_not_int8
from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.deploy.portable import lower_packed
from qsam2_ao.errors import CheckpointError, UnsupportedLayerError
from qsam2_ao.native import why_no_kernels

pytestmark = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))


def packed_like(weight: torch.Tensor, bits: int, zero_point: float | None = None, **group: int) -> PackedIntxTensor:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits if bits < 8 else 255, weight.shape, generator=generator)
    shape = (weight.shape[0], -(-weight[0].numel() // group["group_size"])) if group else (weight.shape[0],)
    scale = torch.rand(shape, generator=generator) / weight[0].numel() ** 0.5
    zero = (2**bits - 1) / 2 if zero_point is None else zero_point
    return PackedIntxTensor.from_codes(codes, scale, torch.full_like(scale, zero), bits, **group)


def both(
    layer: nn.Module, packed: PackedIntxTensor, quantizer: ActivationQuantizer, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the int8 layer gives, and what the quantizer and the packed layer give in float."""
    lowered = lower_int8(layer, packed, quantizer, torch.float32)
    return lowered(QuantizeCodes(CodeGrid.of(quantizer))(x)), lower_packed(layer, packed)(quantizer(x))


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize(
    ("bits", "zero_point"), [(2, 1.5), (2, 2.0), (3, 3.5), (4, 7.5), (4, 8.0), (4, 3.0), (8, 127.0), (8, 128.0)]
)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_linear(bits: int, zero_point: float, quantizer: ActivationQuantizer, bias: bool) -> None:
    layer = nn.Linear(112, 40, bias=bias)
    x = activations(quantizer, 2, 5, 112)
    actual, expected = both(layer, packed_like(layer.weight, bits, zero_point), quantizer, x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 20, 1),
        nn.Conv2d(6, 20, 1),
        nn.Conv2d(3, 96, 7, stride=4, padding=3),
        nn.Conv2d(5, 12, (3, 1), stride=(2, 1), padding=(1, 0)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("channels_last", [True, False])
@torch.no_grad()
def test_convolution(layer: nn.Conv2d, channels_last: bool) -> None:
    x = torch.randn(2, layer.in_channels, 24, 20)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    # Code 0 of this quantizer is far from zero: padding must be the code of zero.
    actual, expected = both(layer, packed_like(layer.weight, 4), QUANTIZERS["8 bits"], x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codes_of", [None, ActivationQuantizer(0, 255, 0.06, 117.0)], ids=["values", "codes"])
@pytest.mark.parametrize("shape", [(3, 5, 8), (1, 5, 8), (8,), (3, 5, 1)])
@torch.no_grad()
def test_what_is_added_may_be_broadcast(shape: tuple[int, ...], codes_of: ActivationQuantizer | None) -> None:
    layer, quantizer, added = nn.Linear(8, 8), QUANTIZERS["8 bits"], torch.randn(shape)
    packed, x = packed_like(layer.weight, 4), activations(quantizer, 3, 5, 8)
    lowered = lower_int8(layer, packed, quantizer, torch.float32)
    if codes_of is not None:
        lowered.grid = CodeGrid.of(codes_of)
    actual = lowered(QuantizeCodes(CodeGrid.of(quantizer))(x), added)
    expected = lower_packed(layer, packed)(quantizer(x)) + added
    if codes_of is not None:
        assert actual.dtype == torch.uint8
        actual, expected = (actual - codes_of.zero_point) * codes_of.scale, codes_of(expected)
    torch.testing.assert_close(
        actual, expected, rtol=1e-4, atol=1e-4 + (0.0 if codes_of is None else float(codes_of.scale))
    )


def test_a_layer_keeps_its_size_in_memory() -> None:
    layer = nn.Linear(384, 1536)
    for bits in (2, 3, 4):
        lowered = lower_int8(layer, packed_like(layer.weight, bits), QUANTIZERS["8 bits"])
        assert lowered.weight.nbytes == layer.weight.numel() * bits // 8, "no int8 copy beside the packed bits"


def test_what_is_not_supported_says_why() -> None:
    quantizer = QUANTIZERS["8 bits"]

    def reason(layer: nn.Module, bits: int = 4, **form: object) -> str:
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        return str(why_not_int8(layer, packed_like(weight, bits, **form), "cpu", quantizer))  # type: ignore[arg-type]

    assert reason(nn.Linear(8, 4)) == "None"
    assert "not on meta" in str(why_not_int8(nn.Linear(8, 4), packed_like(torch.ones(4, 8), 4), "meta", quantizer))
    assert "not 5" in reason(nn.Linear(8, 4), bits=5)
    assert "divisible by 4, not 6" in reason(nn.Linear(6, 4))
    assert "grouped" in reason(nn.Conv2d(8, 8, 3, groups=8))
    assert "padding in pixels" in reason(nn.Conv2d(8, 8, 3, padding="same"))
    for zero_point, fits in ((-20.0, False), (300.0, False), (0.0, True), (255.0, True)):
        quantizer = ActivationQuantizer(0, 255, 0.02, zero_point)
        assert ("the code of zero" in reason(nn.Conv2d(4, 8, 3, padding=1))) != fits
        assert ("the code of zero" in reason(nn.Conv2d(3, 8, 3))) != fits  # patches are padded to 28 codes
        assert reason(nn.Conv2d(4, 8, 3)) == "None"
    quantizer = QUANTIZERS["8 bits"]
    assert "zero point 1.25" in reason(nn.Linear(8, 4), bits=2, zero_point=1.25)
    assert "zero point 120.0" in reason(nn.Linear(8, 4), bits=8, zero_point=120.0)
    layer = nn.Linear(8, 4)
    mixed = PackedIntxTensor.from_codes(torch.zeros(4, 8, dtype=torch.uint8), torch.ones(4), torch.arange(4.0), 4)
    assert "one zero point" in str(why_not_int8(layer, mixed, "cpu", quantizer))
    with pytest.raises(UnsupportedLayerError, match="one zero point for all"):
        lower_int8(layer, mixed, quantizer)


@pytest.mark.parametrize("layer", [nn.Linear(66304, 4), nn.Conv2d(7366, 4, 3)], ids=["66,304", "9 x 7,366"])
@torch.no_grad()
def test_the_largest_sums_that_fit_are_exact(layer: nn.Linear | nn.Conv2d) -> None:
    """All inputs at the largest code and all weights at the largest value: 255 * 127 * 66,304 < 2^31."""
    codes = torch.full(layer.weight.shape, 255)
    packed = PackedIntxTensor.from_codes(codes, torch.full((4,), 1e-6), torch.full((4,), 128.0), 8)
    quantizer = ActivationQuantizer(0, 255, 0.01, 0.0)
    x = torch.full((1, layer.weight[0].numel()), 9.0).view(1, *layer.weight.shape[1:])
    lowered = lower_int8(layer, packed, quantizer, torch.float32)
    exact = 255 * 0.01 * 127e-6 * layer.weight[0].numel()
    out = lowered(QuantizeCodes(CodeGrid.of(quantizer))(x)).flatten() - layer.bias
    torch.testing.assert_close(out, torch.full((4,), exact), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "bits", "code", "high", "fits"),
    [
        (nn.Linear(66316, 2), 8, 255, 255, False),
        (nn.Linear(65792, 2), 8, 0, 255, True),
        (nn.Linear(65800, 2), 8, 0, 255, False),  # of -128
        (nn.Linear(200000, 2), 8, 130, 255, True),  # small weights: their sums are looked at
        (nn.Linear(65800, 2), 8, 0, 15, True),
        (nn.Linear(600000, 2), 4, 15, 255, False),  # on the mid-rise grid values are doubled
        (nn.Linear(500000, 2), 4, 15, 255, True),
        (nn.Conv2d(7400, 2, 3), 8, 255, 255, False),
    ],
)
def test_sums_beyond_32_bits_stay_packed(layer: nn.Module, bits: int, code: int, high: int, fits: bool) -> None:
    shape = layer.weight.shape
    assert isinstance(shape, torch.Size)
    zero_point = torch.full((2,), 128.0 if bits == 8 else 7.5)
    packed = PackedIntxTensor.from_codes(torch.full(shape, code, dtype=torch.uint8), torch.ones(2), zero_point, bits)
    reason = why_not_int8(layer, packed, "cpu", ActivationQuantizer(0, high, 0.1, 0.0))
    assert (reason is None) == fits
    assert fits or "beyond 32 bits" in str(reason)


def test_an_int8_layer_is_neither_saved_nor_moved_nor_cast() -> None:
    layer = lower_int8(nn.Linear(8, 4), packed_like(torch.ones(4, 8), 4), QUANTIZERS["8 bits"])
    with pytest.raises(CheckpointError, match='target="packed"'):
        layer.state_dict()
    with pytest.raises(UnsupportedLayerError, match="cannot move to meta"):
        layer.to("meta")
    assert layer.bfloat16().alpha.dtype == torch.float32


def test_weights_are_kept_as_int8_on_gpus_alone() -> None:
    layer = nn.Linear(112, 40)
    lowered = lower_int8(layer, packed_like(layer.weight, 4), QUANTIZERS["8 bits"])
    with pytest.raises(UnsupportedLayerError, match="run on cpu"):
        use_int8_weights(nn.Sequential(lowered))
    with pytest.raises(UnsupportedLayerError, match="are not lowered"):
        use_int8_weights(nn.Sequential(layer))


def test_a_gpu_is_not_given_sums_beyond_32_bits() -> None:
    """Weights of few bits are multiplied at the top of their bytes there."""
    layer = nn.Linear(2**17, 1)
    packed = packed_like(layer.weight, 2)
    assert linear_module._largest_sum(packed, 1.5, 2, CodeGrid(0.1, 0.0, 255), torch.device("cuda")) == 2**31
    assert linear_module._largest_sum(packed, 1.5, 2, CodeGrid(0.1, 0.0, 255), torch.device("cpu")) < 2**31
