"""The observer of variance-reduced calibration: streams the Gram matrix of a layer's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.ao.quantization.observer import ObserverBase

from ..errors import CalibrationError, NonFiniteError

_ROWS_PER_PRODUCT = 8192


class VRCObserver(ObserverBase):
    """Accumulates G = X^T X and the number of rows n of the inputs X that pass through it.

    Memory is d_in^2 float64 values whatever n is; no activation is kept. Products are float32 over at most
    8192 rows, their sum float64.

    Args:
        layout: "last" for inputs of a linear layer, [..., d_in]; "nchw" for inputs of a 1x1 convolution,
            [N, d_in, H, W].
        name: Of the layer, for error messages.
        max_rows: Use at most so many rows of a call, evenly spread; None for all of them. The Gram matrix is complete
            after ``synchronize``.

    Raises:
        CalibrationError: Unknown layout, or ``max_rows`` below 1.

    Example:
        >>> observer = VRCObserver()
        >>> for x in batches:
        ...     observer(x)
        >>> w_hat = solve_vrc(linear.weight, observer.gram, damping=0.01)
    """

    gram: Tensor
    count: Tensor

    def __init__(self, layout: str = "last", *, name: str = "", max_rows: int | None = None) -> None:
        super().__init__(dtype=torch.float32)
        if layout not in ("last", "nchw"):
            raise CalibrationError(f"unknown layout {layout!r}: choose 'last' or 'nchw'")
        if max_rows is not None and max_rows < 1:
            raise CalibrationError(f"layer {name!r}: max_rows must be at least 1, not {max_rows}")
        self.layout = layout
        self.name = name
        self.max_rows = max_rows
        self.register_buffer("gram", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))
        self._waiting: list[Tensor] = []

    @property
    def n(self) -> int:
        """Rows of X used so far."""
        return int(self.count)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Add ``x`` to the Gram matrix.

        Args:
            x: [..., d_in] or, with layout "nchw", [N, d_in, H, W]; any floating dtype.

        Returns:
            ``x``, unchanged.

        Raises:
            CalibrationError: ``x`` has another width than the inputs before it.
        """
        observed = x.detach()
        if self.layout == "nchw":
            observed = observed.movedim(1, -1)
        rows = observed.reshape(-1, observed.shape[-1])
        count = len(rows) if self.max_rows is None else min(len(rows), self.max_rows)
        sampled = count < len(rows)
        if sampled:
            # No constant stride, which could meet the same columns of every image row.
            rows = rows[torch.arange(count, device=x.device) * len(rows) // count]
        width = rows.shape[1]
        if self.gram.numel() == 0:
            self.gram = torch.zeros(width, width, dtype=torch.float64, device=x.device)
            self.count = self.count.to(x.device)
        elif self.gram.shape[0] != width:
            raise CalibrationError(
                f"layer {self.name!r}: got inputs of width {width} after inputs of width {self.gram.shape[0]}"
            )
        self.count += rows.shape[0]
        if not sampled or len(rows) >= width:
            self._add(rows)
            return x
        # Products of few rows would take most of their time for the sum: they wait for others.
        self._waiting.append(rows.float())
        if sum(map(len, self._waiting)) >= width:
            self._add_waiting()
        return x

    def _add(self, rows: Tensor) -> None:
        with torch.autocast(rows.device.type, enabled=False):
            for part in rows.split(_ROWS_PER_PRODUCT):
                part = part.float()
                self.gram += part.T @ part

    def _add_waiting(self) -> None:
        if self._waiting:
            self._add(torch.cat(self._waiting))
            self._waiting.clear()

    def synchronize(self) -> None:
        """Complete the sum, over all data-parallel ranks: a collective call, to be made once, after the last batch."""
        self._add_waiting()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.gram)
            dist.all_reduce(self.count)

    def calculate_qparams(self, **kwargs: Any) -> None:
        """Not available: this observer calibrates a weight, it has no quantization parameters.

        Raises:
            CalibrationError: Always.
        """
        raise CalibrationError(
            "VRCObserver has no quantization parameters: it collects the Gram matrix for solve_vrc; use "
            "LSCFakeQuantize, or an observer of torch.ao, for scales and zero points"
        )

    def checked_gram(self) -> Tensor:
        """The Gram matrix, symmetric and finite.

        Raises:
            NonFiniteError: The inputs held NaN or infinity.
            CalibrationError: No input was seen.
        """
        if self.n == 0:
            raise CalibrationError(f"layer {self.name!r}: no calibration data reached it")
        if not bool(torch.isfinite(self.gram).all()):
            raise NonFiniteError(f"layer {self.name!r}: its calibration inputs hold NaN or infinite values")
        return (self.gram + self.gram.T) / 2

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        incoming = state_dict.get(prefix + "gram")
        if incoming is not None and self.gram.numel() == 0:
            self.gram = torch.zeros(incoming.shape, dtype=torch.float64, device=self.gram.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
