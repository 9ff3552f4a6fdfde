"""What a training does to the clipping ranges: how far they have moved, and what they cut off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..quantizers import LSCFakeQuantize, broadcast_qparam


class RangeMetrics:
    """Watches the quantizers of a model.

    Args:
        model: A prepared model as it is before the training. Of a float one there is nothing to say.

    Attributes:
        counting: Whether the calls of the quantizers are looked at, which takes time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.counting = False
        self._quantizers = [q for q in model.modules() if isinstance(q, LSCFakeQuantize) and q.is_initialized]
        self._start = [q.log_alpha.detach().clone() for q in self._quantizers]
        self._shares: dict[bool, list[Tensor]] = {True: [], False: []}
        self._hooks = [quantizer.register_forward_hook(self._look) for quantizer in self._quantizers]

    @torch.no_grad()
    def take(self) -> dict[str, float]:
        """The figures now, of the calls since the last time.

        Returns:
            "ranges/drift" and "ranges/largest_drift", mean and maximum over all ranges of the absolute change of the
            logarithm of their width since the start; "clipped/weights" and "clipped/inputs", the mean over calls of the
            share of values outside the range. What there is nothing of is left out.
        """
        found: dict[str, float] = {}
        if self._quantizers:
            moved = torch.cat(
                [
                    (quantizer.log_alpha.detach() - start.to(quantizer.log_alpha.device)).abs().flatten()
                    for quantizer, start in zip(self._quantizers, self._start, strict=True)
                ]
            )
            found = {"ranges/drift": float(moved.mean()), "ranges/largest_drift": float(moved.max())}
        for is_weight, name in ((True, "weights"), (False, "inputs")):
            if self._shares[is_weight]:
                found[f"clipped/{name}"] = float(torch.stack(self._shares[is_weight]).mean())
            self._shares[is_weight].clear()
        return found

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _look(self, quantizer: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        if not self.counting or not quantizer.training or torch.compiler.is_compiling():
            return
        x = inputs[0].detach().float()
        if x.numel() == 0:
            return
        scale, zero_point = quantizer.qparams(held=True)
        if quantizer.is_weight:
            scale, zero_point = (broadcast_qparam(t, x.shape, quantizer.group_size) for t in (scale, zero_point))
        low, high = quantizer.codes
        codes = x / scale.to(x.device) + zero_point.to(x.device)
        self._shares[quantizer.is_weight].append(((codes < low - 0.5) | (codes > high + 0.5)).float().mean())
