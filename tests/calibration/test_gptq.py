from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsam2_ao.calibration.gptq import gptq_round
from qsam2_ao.calibration.vrc import output_energy
from qsam2_ao.errors import CalibrationError
from qsam2_ao.quantizers import fake_quantize_affine


def case(out, width, bits, seed, correlated=True):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    if not correlated:
        mixing = torch.eye(width, dtype=torch.float64)
    x = torch.randn(8 * width, width, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(out, width, generator=generator)
    scale = (2 * weight.abs().amax(1, keepdim=True) / (2**bits - 1)).float()
    zero_point = torch.full_like(scale, (2**bits - 1) / 2)
    return weight, x.T @ x, scale, zero_point, 0, 2**bits - 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(1, 150), st.integers(2, 4), st.integers(0, 2**16))
def test_every_weight_is_on_the_grid(out, width, bits, seed):
    weight, gram, scale, zero_point, low, high = case(out, width, bits, seed)
    rounded = gptq_round(weight, gram, scale, zero_point, low, high)
    assert rounded.shape == weight.shape
    assert rounded.dtype == weight.dtype
    assert torch.equal(fake_quantize_affine(rounded, scale, zero_point, low, high), rounded)


@pytest.mark.parametrize("seed", range(5))
def test_the_output_is_nearer_than_with_rounding_to_nearest(seed):
    weight, gram, scale, zero_point, low, high = case(16, 96, 3, seed)
    nearest = fake_quantize_affine(weight, scale, zero_point, low, high)
    rounded = gptq_round(weight, gram, scale, zero_point, low, high)
    assert output_energy(rounded - weight, gram) < 0.7 * output_energy(nearest - weight, gram)


def test_independent_inputs_are_rounded_to_nearest():
    weight, _, scale, zero_point, low, high = case(8, 40, 2, 0)
    rounded = gptq_round(weight, torch.diag(torch.rand(40) + 0.1), scale, zero_point, low, high)
    torch.testing.assert_close(rounded, fake_quantize_affine(weight, scale, zero_point, low, high))


def test_two_columns_as_worked_out_by_hand():
    # The second column makes up for the first one's error e by e * g12 / g22 (no damping).
    gram = torch.tensor([[4.0, 1.0], [1.0, 2.0]])
    weight, one = torch.tensor([[0.4, 0.4]]), torch.tensor([[1.0]])
    rounded = gptq_round(weight, gram, one, torch.tensor([[2.0]]), 0, 4, damping=0.0)
    assert rounded.tolist() == [[0.0, 1.0]]  # 0.4 + 0.4 * 1 / 2 = 0.6 rounds up


def test_silent_inputs_and_convolutions():
    weight, gram, scale, zero_point, low, high = case(4, 12, 2, 3)
    gram[5] = gram[:, 5] = 0
    rounded = gptq_round(weight[..., None, None], gram, scale, zero_point, low, high)
    assert rounded.shape == (4, 12, 1, 1)
    assert torch.isfinite(rounded).all()
    assert torch.equal(rounded[:, 5, 0, 0], fake_quantize_affine(weight, scale, zero_point, low, high)[:, 5])


def test_a_gram_matrix_that_does_not_fit_is_refused():
    weight, gram, scale, zero_point, low, high = case(4, 12, 2, 3)
    with pytest.raises(CalibrationError, match=r"block\.fc.*\[12, 12\]"):
        gptq_round(weight, gram[:5, :5], scale, zero_point, low, high, name="block.fc")
    with pytest.raises(CalibrationError, match="finite"):
        gptq_round(weight, gram * float("nan"), scale, zero_point, low, high)
    with pytest.raises(CalibrationError, match="factorized"):
        gptq_round(weight, -gram, scale, zero_point, low, high)
