"""What a part on the kernels gives, in its caller's dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qsam2_ao.deploy.kernels.casts import given_in, to_dtype
from qsam2_ao.native import load_kernels, trim_pool, why_no_kernels

pytestmark = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_values_and_layout_as_a_cast(dtype: torch.dtype) -> None:
    load_kernels()
    last = images(2, 5, 7, 24).permute(0, 3, 1, 2)
    last[0, 0, 0, :3] = torch.tensor([torch.inf, torch.nan, -0.0])
    given = {
        "last": [last, last[:, :3], last.contiguous(), last[:0]],
        "others": (images(3, 4), last.float(), torch.arange(3), "text", None),
    }
    for ours, cast in zip(leaves(given_in(given, dtype)), leaves(to_dtype(given, dtype)), strict=True):
        if isinstance(cast, Tensor):
            torch.testing.assert_close(ours, cast, rtol=0, atol=0, equal_nan=True, check_stride=True)
        else:
            assert ours == cast


def test_large_features_lie_in_memory_that_is_kept() -> None:
    load_kernels()
    x = images(1, 128, 128, 256).permute(0, 3, 1, 2)
    trim_pool()
    given_in(x, torch.float32)
    assert trim_pool() == 4 * x.numel()


def test_whatever_new_tensors_are_by_default() -> None:
    load_kernels()
    x = images(1, 4, 4, 8).permute(0, 3, 1, 2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            found = given_in(x, torch.float32)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, x.float())


def leaves(x: object) -> list[object]:
    if isinstance(x, dict):
        x = list(x.values())
    return [leaf for value in x for leaf in leaves(value)] if isinstance(x, list | tuple) else [x]
