"""Rounding to codes with torch's own operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.codes import QuantizeCodes

_CHUNK = 2**17
"""Values that are rounded at a time on each thread: half a megabyte, which stays in the cache from step to step."""


class OneDNNCodes(QuantizeCodes):
    """Rounds its input to codes: float tensor of any shape -> uint8 in the same layout, as ``QuantizeCodes`` does."""

    def forward(self, x: Tensor) -> Tensor:
        """The codes of ``x``."""
        scale, zero_point, high = self.grid.arguments
        chunk = _CHUNK * torch.get_num_threads()
        if x.numel() <= chunk:
            return (x.float() / scale).add_(zero_point).round_().clamp_(0, high).to(torch.uint8)
        codes = torch.empty_like(x, dtype=torch.uint8)
        if codes.stride() != x.stride():  # x has gaps, or is expanded
            x = x.contiguous()
            codes = torch.empty_like(x, dtype=torch.uint8)
        flat = (x.numel(),), (1,)
        for values, out in zip(x.as_strided(*flat).split(chunk), codes.as_strided(*flat).split(chunk), strict=True):
            out.copy_((values.float() / scale).add_(zero_point).round_().clamp_(0, high))
        return codes
