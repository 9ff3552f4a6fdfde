"""Rounding to codes with torch's own operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.codes import QuantizeCodes

_CHUNK = 2**17
"""Values that are rounded at a time on each thread: half a megabyte, which stays in the cache from step to step."""
_TO_INTEGER = 2.0**23
"""Added to a float32 from 0 to 255, it rounds that half to even and leaves it in the lowest byte, which is read as an
integer: torch converts floats to bytes one by one, which takes longer than all the rest."""


class OneDNNCodes(QuantizeCodes):
    """Rounds its input to codes: float tensor of any shape -> uint8 in the same layout, as ``QuantizeCodes`` does."""

    def forward(self, x: Tensor) -> Tensor:
        """The codes of ``x``."""
        chunk = _CHUNK * torch.get_num_threads()
        if x.numel() <= chunk:
            return self._round(x).to(torch.uint8)
        codes = torch.empty_like(x, dtype=torch.uint8)
        if codes.stride() != x.stride():  # x has gaps, or is expanded
            x = x.contiguous()
            codes = torch.empty_like(x, dtype=torch.uint8)
        flat = (x.numel(),), (1,)
        for values, out in zip(x.as_strided(*flat).split(chunk), codes.as_strided(*flat).split(chunk), strict=True):
            out.copy_(self._round(values))
        return codes

    def _round(self, x: Tensor) -> Tensor:
        """int32, whose lowest byte is the code."""
        scale, zero_point, high = self.grid.arguments
        return (x.float() / scale).add_(zero_point).clamp_(0, high).add_(_TO_INTEGER).view(torch.int32)
