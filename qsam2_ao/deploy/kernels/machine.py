"""What every module laid out for one device has in common: it is copied, but neither saved as a file nor moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, UnsupportedLayerError
from ...native import kernels_layout, load_kernels


class OfThisMachine(nn.Module):
    """Its buffers are laid out for the kernels of one device: it goes to other processes there, and nowhere else."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> NoReturn:
        raise CheckpointError(
            f"{prefix.rstrip('.') or 'this layer'} is lowered to int8 kernels: load the file with "
            'target="packed" to save it again'
        )

    def __getstate__(self) -> dict[str, Any]:
        """What pickle takes, with the layout that it is in."""
        return {**vars(self), "_layout": kernels_layout(next(self.buffers()).device)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read what pickle has, where the same kernels run."""
        state = dict(state)
        layout = state.pop("_layout")
        super().__setstate__(state)
        device = next(self.buffers()).device
        try:
            load_kernels(device)
        except UnsupportedLayerError as error:
            raise CheckpointError(f"a pickled int8 model runs where its kernels do: {error} {_ADVICE}") from error
        if kernels_layout(device) != layout:
            raise CheckpointError(f"this int8 model was pickled with other kernels ({layout}). {_ADVICE}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        here = next(self.buffers()).device
        probe = fn(torch.empty(1, device=here))
        if probe.device != here:
            raise UnsupportedLayerError(
                f"a layer lowered to int8 kernels cannot move to {probe.device}: load the file on that device"
            )
        if here.type == "cpu" and probe.is_shared():  # model.share_memory()
            for buffer in self.buffers(recurse=False):
                buffer.share_memory_()
        return self  # model.bfloat16() means the float layers; scales stay as they were trained


_ADVICE = "Take the packed file there, and load it with load_qsam2."
