from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qsam2_ao.quantizers.affine import broadcast_qparam, dequantize_affine, expand_groups, quantize_affine


def test_rounds_half_to_even_and_clamps():
    x = torch.tensor([0.25, 0.75, 1.25, -5.0, 5.0])
    codes = quantize_affine(x, torch.tensor([0.5]), torch.tensor([0.0]), -1, 2)
    assert codes.tolist() == [0.0, 2.0, 2.0, -1.0, 2.0]


def test_half_precision_is_computed_in_float32():
    x = torch.linspace(-1, 1, 301, dtype=torch.bfloat16)
    scale, zero = torch.tensor([0.0371]), torch.tensor([7.5])
    assert torch.equal(quantize_affine(x, scale, zero, 0, 15), quantize_affine(x.float(), scale, zero, 0, 15))
    assert dequantize_affine(quantize_affine(x, scale, zero, 0, 15), scale, zero).dtype == torch.float32


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30),
    scale=st.floats(1e-3, 10),
    zero=st.integers(0, 15),
)
def test_error_is_half_a_step_inside_the_range_and_requantizing_changes_nothing(values, scale, zero):
    x, s, z = torch.tensor(values), torch.tensor([scale]), torch.tensor([float(zero)])
    codes = quantize_affine(x, s, z, 0, 15)
    x_hat = dequantize_affine(codes, s, z)
    inside = (x / s + z >= 0) & (x / s + z <= 15)
    assert bool(((x_hat - x).abs()[inside] <= s / 2 * (1 + 1e-4) + 1e-5).all())
    assert torch.equal(quantize_affine(x_hat, s, z, 0, 15), codes)


@given(out=st.integers(1, 4), inputs=st.integers(1, 20), group=st.integers(1, 8))
def test_expand_groups_gives_every_input_its_group(out, inputs, group):
    t = torch.randn(out, -(-inputs // group))
    expanded = expand_groups(t, inputs, group)
    assert expanded.shape == (out, inputs)
    for j in range(inputs):
        assert torch.equal(expanded[:, j], t[:, j // group])


def test_expand_groups_refuses_a_wrong_number_of_groups():
    with pytest.raises(ValueError, match=r"\[out, 2\]"):
        expand_groups(torch.zeros(3, 3), 8, 4)


def test_broadcast_qparam_for_each_granularity():
    shape = (4, 3, 2, 2)
    assert broadcast_qparam(torch.ones(1), shape).shape == (1,)
    assert broadcast_qparam(torch.ones(4), shape).shape == (4, 1, 1, 1)
    t = torch.arange(12.0).reshape(4, 3)
    grouped = broadcast_qparam(t, shape, group_size=5)
    assert grouped.shape == shape
    assert grouped.reshape(4, 12)[1].tolist() == [3.0] * 5 + [4.0] * 5 + [5.0] * 2


@pytest.mark.parametrize(("t", "group"), [(torch.ones(3), None), (torch.ones(4, 2), None)])
def test_broadcast_qparam_refuses_what_does_not_fit(t, group):
    with pytest.raises(ValueError, match="quantization parameters"):
        broadcast_qparam(t, (4, 8), group)
