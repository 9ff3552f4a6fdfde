from __future__ import annotations

import pytest
import torch

from qsam2_ao import LSCFakeQuantize
from qsam2_ao.errors import QConfigError
from qsam2_ao.quantizers.grids import WEIGHT_GRIDS, weight_grid
from qsam2_ao.quantizers.integers import integer_codes, integer_range

WITHOUT = [("mean", bits) for bits in range(2, 9)] + [("midrise", 8)]


@pytest.mark.parametrize("dtype", [torch.qint8, torch.uint8])
@pytest.mark.parametrize("grid", WEIGHT_GRIDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
def test_every_level_is_an_integer_code_to_the_bit(grid, bits, dtype):
    made = weight_grid(grid, bits)
    centre = {"midrise": made.quant_max / 2, "symmetric": 0.0, "asymmetric": 1.0, "mean": 0.3}[grid]
    scale, zero_point = torch.tensor([0.1, 3e-5]), torch.tensor([centre, centre])
    if (grid, bits) in WITHOUT:
        with pytest.raises(QConfigError, match=r"fc: .*choose grid="):
            integer_codes(made, scale, zero_point, dtype, "fc")
        return
    codes = integer_codes(made, scale, zero_point, dtype, "fc")
    assert (codes.quant_min, codes.quant_max) == integer_range(made, dtype)
    assert codes.zero_point.dtype == torch.int32
    assert torch.iinfo(codes.dtype).min <= codes.quant_min < codes.quant_max <= torch.iinfo(codes.dtype).max
    levels = (torch.arange(made.quant_min, made.quant_max + 1)[:, None] - zero_point) * scale
    integers = torch.linspace(codes.quant_min, codes.quant_max, len(levels))[:, None]
    assert torch.equal(integers, integers.round())
    assert torch.equal((integers - codes.zero_point) * codes.scale, levels)


@pytest.mark.parametrize(("grid", "bits"), [(g, b) for g in WEIGHT_GRIDS for b in (2, 4, 8) if (g, b) not in WITHOUT])
def test_torch_ao_is_told_codes_of_its_dtype_that_give_the_fake_quantized_weight(grid, bits):
    weight = torch.randn(4, 20, generator=torch.Generator().manual_seed(bits)) + 0.3
    quantizer = LSCFakeQuantize(bits, is_weight=True, grid=grid)
    expected = quantizer.eval()(weight)
    scale, zero_point = quantizer.calculate_qparams()
    assert zero_point.dtype == torch.int32
    requantized = torch.quantize_per_channel(expected, scale, zero_point, 0, quantizer.dtype)
    assert torch.equal(requantized.dequantize(), expected)
    codes = requantized.int_repr()
    assert codes.min() >= quantizer.quant_min
    assert codes.max() <= quantizer.quant_max


def test_an_activations_codes_are_its_own():
    quantizer = LSCFakeQuantize(8)
    quantizer(torch.randn(100) + 1)
    scale, zero_point = quantizer.calculate_qparams()
    assert (zero_point.dtype, quantizer.quant_min, quantizer.quant_max) == (torch.int32, 0, 255)
    assert torch.equal(scale, quantizer.qparams()[0])
    assert torch.equal(zero_point.float(), quantizer.qparams()[1])
