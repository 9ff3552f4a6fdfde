from __future__ import annotations

import pytest
import torch

from qsam2_ao.errors import QConfigError
from qsam2_ao.quantizers.grids import RangeStats
from qsam2_ao.quantizers.scalar_ranges import scalar_statistics
from qsam2_ao.quantizers.statistics import (
    check_granularity,
    merge_statistics,
    sum_rows,
    tensor_statistics,
    weight_statistics,
)


@pytest.mark.parametrize("zero_centred", [True, False])
@pytest.mark.parametrize(
    ("granularity", "group", "shape"),
    [("tensor", None, (1,)), ("channel", None, (4,)), ("group", 5, (4, 3)), ("group", 64, (4, 1))],
)
def test_weight_statistics_match_numpy_style_loops(zero_centred, granularity, group, shape):
    weight = torch.randn(4, 3, 2, 2) + 0.5
    flat = weight.reshape(4, 12)
    if granularity == "tensor":
        pieces = [flat.flatten()]
    elif granularity == "channel":
        pieces = list(flat)
    else:
        pieces = [piece for row in flat for piece in row.split(group)]
    found = weight_statistics(weight, granularity, group, zero_centred=zero_centred)
    mean = torch.tensor([0.0 if zero_centred else float(p.mean()) for p in pieces])
    std = torch.tensor([float((p - m).square().mean().sqrt()) for p, m in zip(pieces, mean, strict=True)])
    extremes = ([p.min() for p in pieces], [p.max() for p in pieces])
    for value, expected in zip(found, (mean, std, *extremes), strict=True):
        assert value.shape == shape
        torch.testing.assert_close(value.flatten(), torch.as_tensor(expected))


def test_sum_rows_of_uneven_groups():
    sums = sum_rows(torch.arange(10.0).reshape(2, 5), "group", 2)
    assert sums.tolist() == [[1.0, 5.0, 4.0], [11.0, 15.0, 9.0]]


@pytest.mark.parametrize(("mean", "dtype"), [(0.0, torch.float32), (1000.0, torch.float32), (2.0, torch.bfloat16)])
def test_tensor_statistics_are_accurate_even_far_from_zero(mean, dtype):
    x = (torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(0)) + mean).to(dtype)
    found = tensor_statistics(x)
    exact = x.double()
    assert found.mean.item() == pytest.approx(exact.mean().item(), rel=1e-5, abs=1e-5)
    assert found.std.item() == pytest.approx(exact.std(correction=0).item(), rel=1e-3)
    assert (found.low.item(), found.high.item()) == (exact.min().item(), exact.max().item())


def test_merging_parts_gives_the_statistics_of_the_whole():
    parts = [torch.randn(100) * 3 + 1, torch.randn(17) - 5, torch.randn(1)]
    each = [tensor_statistics(part) for part in parts]
    columns = RangeStats(*(torch.cat(field) for field in zip(*each, strict=True)))
    merged = merge_statistics(columns, torch.tensor([100, 17, 1]))
    whole = tensor_statistics(torch.cat(parts))
    for a, b in zip(merged, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("granularity", "group"), [("row", None), ("group", None), ("group", 0), ("channel", 32)])
def test_granularity_and_group_size_must_go_together(granularity, group):
    with pytest.raises(QConfigError, match="granularity"):
        check_granularity(granularity, group)


@pytest.mark.parametrize("values", [(2.0494, 1.7), (0.29, 0.31), (-9.9991, 9.9991)])
def test_many_equal_numbers_have_the_deviation_that_they_have(values):
    """As a white background has: long sums of equal float32 numbers drift."""
    x = torch.full((2, 3, 1024, 1024), values[0])
    x[torch.rand(x.shape) < 0.05] = values[1]
    expected = x.double()
    found = scalar_statistics(x)
    assert found.mean == pytest.approx(expected.mean().item(), rel=1e-6)
    assert found.std == pytest.approx(expected.std(correction=0).item(), rel=2e-3)
