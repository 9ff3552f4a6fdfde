"""What every module laid out for one device has in common: it is neither saved nor moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, UnsupportedLayerError


class OfThisMachine(nn.Module):
    """Neither saved nor moved: its buffers are laid out for the kernels of one device."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> NoReturn:
        raise CheckpointError(
            f"{prefix.rstrip('.') or 'this layer'} is lowered to int8 kernels: load the file with "
            'target="packed" to save it again'
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        here = next(self.buffers()).device
        there = fn(torch.empty(0, device=here)).device
        if there.type != here.type:
            raise UnsupportedLayerError(
                f"a layer lowered to int8 kernels cannot move to {there.type}: load the file on that device"
            )
        return self  # model.bfloat16() means the float layers; scales stay as they were trained
