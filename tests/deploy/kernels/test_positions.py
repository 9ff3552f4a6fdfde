"""SAM2's sine position encoding as lowered parts have it, against SAM2's own."""

from __future__ import annotations

import copy

import pytest
import torch
from sam2.modeling.position_encoding import PositionEmbeddingSine

from qsam2_ao.deploy.kernels.positions import SinePosition


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_position_is_that_of_sam2(dtype: torch.dtype, normalize: bool) -> None:
    encoding = PositionEmbeddingSine(24, normalize=normalize)
    kept = SinePosition(copy.deepcopy(encoding))
    for size in ((9, 31), (9, 31), (31, 9), (1, 1)):
        x = torch.randn(3, 5, *size)
        found, expected = kept(x, dtype), encoding(x).to(dtype)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 2**-8)


def test_it_is_made_once_and_sam2_keeps_only_its_lines() -> None:
    kept = SinePosition(PositionEmbeddingSine(24))
    x = torch.randn(2, 5, 16, 16)
    assert kept(x, torch.float32).data_ptr() == kept(x + 1, torch.float32).data_ptr()
    assert sum(line.numel() for line in kept.encoding.cache.values()) == 24 * (16 + 16)
