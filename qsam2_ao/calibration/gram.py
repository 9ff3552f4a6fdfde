"""The observer of variance-reduced calibration: streams the mean and the centred Gram matrix of a layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.observer import ObserverBase

from ..errors import CalibrationError, NonFiniteError
from ..quantizers.output_error import typical_energy
from ..quantizers.statistics import world_size

_ROWS_PER_PRODUCT = 8192
_ROUNDING = torch.finfo(torch.float32).eps
# Rows that are kept to tell massive tokens by: those so many times farther from the median than half of the tokens, or
# than inputs typically deviate.
_SAMPLE, _MASSIVE = 512, 10.0


class InputStatistics(NamedTuple):
    """What calibration knows of a layer's inputs X, [n, d_in].

    An input that is large all the time (a massive activation) has a huge mean square and need not vary at all. What a
    change of the weight does to it, the bias takes back; so what counts is how inputs differ from what they usually
    are. That is their mean, or where a few tokens are massive and draw the mean away, the mean of the others.

    Attributes:
        n: Rows of X.
        mean: Of each input, float64 [d_in].
        centred: X^T X - n mean mean^T, float64 [d_in, d_in].
        usual: Mean of each input over the tokens in which it is not massive, float64 [d_in].
    """

    n: int
    mean: Tensor
    centred: Tensor
    usual: Tensor

    @property
    def gram(self) -> Tensor:
        """X^T X, float64 [d_in, d_in]."""
        return self._about(torch.zeros_like(self.mean))

    def gram_for(self, layer: nn.Module) -> Tensor:
        """The Gram matrix that errors of the layer's weight count by: about ``usual`` where the layer has a bias.

        Without one (to give it one would change the model's state dict) all of its output counts: X^T X.

        Args:
            layer: A linear layer or convolution.
        """
        return self.gram if layer.bias is None else self._about(self.usual)

    @torch.no_grad()
    def into_bias(self, layer: nn.Module, removed: Tensor) -> None:
        """Let the layer's bias, if it has one, make up for what its weight loses, at the usual input.

        Args:
            layer: A linear layer or 1x1 convolution; its bias is changed in place.
            removed: What was subtracted from its weight, or is going to be by a quantizer, of the weight's shape.
        """
        if isinstance(layer.bias, Tensor):
            layer.bias += (removed.reshape(len(removed), -1).double() @ self.usual).to(layer.bias)

    def _about(self, centre: Tensor) -> Tensor:
        """(X - centre)^T (X - centre)."""
        return self.centred + self.n * torch.outer(self.mean - centre, self.mean - centre)


class VRCObserver(ObserverBase):
    """Accumulates n, the mean and the centred Gram matrix of the inputs X that pass through it.

    Memory is d_in^2 float64 values and a random sample of 512 rows, whatever n is. Rows are centred before they are
    multiplied, at most 8192 at a time in float32, and joined by Chan's update in float64: an offset of an input,
    however large, costs nothing of what is known of its variance.

    Args:
        layout: "last" for inputs of a linear layer, [..., d_in]; "nchw" for inputs of a 1x1 convolution,
            [N, d_in, H, W].
        name: Of the layer, for error messages.
        max_rows: Use at most so many rows of a call, evenly spread; None for all of them. The statistics are complete
            after ``synchronize``.

    Raises:
        CalibrationError: Unknown layout, or ``max_rows`` below 1.

    Example:
        >>> observer = VRCObserver()
        >>> same = observer(inputs)  # inputs: [tokens, channels]
        >>> w_hat = solve_vrc(linear.weight, observer.statistics().gram_for(linear), damping=0.01)
    """

    mean: Tensor
    centred: Tensor
    count: Tensor
    sample: Tensor
    keys: Tensor

    def __init__(self, layout: str = "last", *, name: str = "", max_rows: int | None = None) -> None:
        super().__init__(dtype=torch.float32)
        if layout not in ("last", "nchw"):
            raise CalibrationError(f"unknown layout {layout!r}: choose 'last' or 'nchw'")
        if max_rows is not None and max_rows < 1:
            raise CalibrationError(f"layer {name!r}: max_rows must be at least 1, not {max_rows}")
        self.layout = layout
        self.name = name
        self.max_rows = max_rows
        self.register_buffer("mean", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("centred", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("sample", torch.zeros(0, 0))
        self.register_buffer("keys", torch.zeros(0))
        self._waiting: list[Tensor] = []

    @property
    def n(self) -> int:
        """Rows of X used so far."""
        return int(self.count) + sum(map(len, self._waiting))

    @property
    def gram(self) -> Tensor:
        """X^T X of the rows so far."""
        return self.centred + self.count * torch.outer(self.mean, self.mean)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Add the rows of ``x`` to the statistics.

        Args:
            x: [..., d_in] or, with layout "nchw", [N, d_in, H, W] or [d_in, H, W]; any floating dtype. An empty one
                is ignored.

        Returns:
            ``x``, unchanged.

        Raises:
            CalibrationError: ``x`` has another width than the inputs before it.
        """
        if x.numel() == 0:
            return x
        observed = x.detach()
        if self.layout == "nchw":
            observed = observed.movedim(-3, -1)
        rows = observed.reshape(-1, observed.shape[-1])
        count = len(rows) if self.max_rows is None else min(len(rows), self.max_rows)
        sampled = count < len(rows)
        if sampled:
            # No constant stride, which could meet the same columns of every image row.
            rows = rows[torch.arange(count, device=x.device) * len(rows) // count]
        width = rows.shape[1]
        if self.mean.numel() == 0:
            self._begin(width, x.device)
        elif len(self.mean) != width:
            raise CalibrationError(
                f"layer {self.name!r}: got inputs of width {width} after inputs of width {len(self.mean)}"
            )
        if not sampled or len(rows) >= width:
            self._add(rows)
            return x
        # Products of few rows would take most of their time for the sum: they wait for others.
        self._waiting.append(rows.float())
        if sum(map(len, self._waiting)) >= width:
            self._add_waiting()
        return x

    def _begin(self, width: int, device: torch.device) -> None:
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.centred = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.count = self.count.to(device)
        self.sample = torch.zeros(0, width, device=device)
        self.keys = self.keys.to(device)

    def _add(self, rows: Tensor) -> None:
        with torch.autocast(rows.device.type, enabled=False):
            for part in rows.split(_ROWS_PER_PRODUCT):
                part = part.float()
                self._keep_some(part)
                shift = part.mean(0)
                part = part - shift
                rest = part.mean(0).double()  # what the shift's rounding left
                before, count = int(self.count), len(part)
                delta = shift.double() + rest - self.mean
                self.centred += part.T @ part
                self.centred.addr_(rest, rest, alpha=-count)
                self.centred.addr_(delta, delta, alpha=before * count / (before + count))
                self.mean += count / (before + count) * delta
                self.count += count

    def _keep_some(self, rows: Tensor) -> None:
        """Draw from the rows so that every row so far is in the sample with the same chance."""
        generator = torch.Generator().manual_seed(int(self.count))
        keys = torch.rand(len(rows), generator=generator).to(rows.device)
        if len(self.keys) == _SAMPLE:
            chosen = keys < self.keys.max()
            rows, keys = rows[chosen], keys[chosen]
        self._keep_first(torch.cat([self.keys, keys]), torch.cat([self.sample, rows]))

    def _keep_first(self, keys: Tensor, rows: Tensor) -> None:
        self.keys, self.sample = first_by_key(keys, rows, _SAMPLE)

    def _add_waiting(self) -> None:
        if self._waiting:
            self._add(torch.cat(self._waiting))
            self._waiting.clear()

    def synchronize(self) -> None:
        """Complete the sums, over all data-parallel ranks: a collective call, to be made once, after the last batch."""
        self._add_waiting()
        if world_size() > 1:
            count, own = int(self.count), self.mean.clone()
            dist.all_reduce(self.count)
            if not int(self.count):  # no rank saw anything
                return
            width = torch.tensor([len(own)], device=self.count.device)
            dist.all_reduce(width, dist.ReduceOp.MAX)
            if not count:
                self._begin(int(width), self.count.device)
                own = self.mean.clone()
            self.mean *= count / int(self.count)
            dist.all_reduce(self.mean)
            self.centred += count * torch.outer(own - self.mean, own - self.mean)
            dist.all_reduce(self.centred)
            missing = _SAMPLE - len(self.keys)
            keys = _gather(F.pad(self.keys, (0, missing), value=float("inf")))
            sample = _gather(F.pad(self.sample, (0, 0, 0, missing)))
            self._keep_first(keys[keys.isfinite()], sample[keys.isfinite()])

    def progress(self) -> dict[str, Any]:
        """All that was observed so far, in the middle of a pass, as tensors that :meth:`go_on` takes."""
        return {"buffers": dict(self.state_dict()), "waiting": list(self._waiting)}

    def go_on(self, progress: Mapping[str, Any], device: torch.device) -> None:
        """Continue from another observer's :meth:`progress`.

        Args:
            progress: What it gave.
            device: Where the inputs are.
        """
        self.load_state_dict(progress["buffers"])
        if self.mean.numel():
            self.to(device)
        self._waiting = [rows.to(device) for rows in progress["waiting"]]

    def calculate_qparams(self, **kwargs: Any) -> None:
        """Not available: this observer calibrates a weight, it has no quantization parameters.

        Raises:
            CalibrationError: Always.
        """
        raise CalibrationError(
            "VRCObserver has no quantization parameters: it collects the Gram matrix for solve_vrc; use "
            "LSCFakeQuantize, or an observer of torch.ao, for scales and zero points"
        )

    def statistics(self) -> InputStatistics:
        """What was observed, symmetric and finite.

        An input that varies by less than the rounding of its float32 values is constant: its row and column are zero.

        Raises:
            NonFiniteError: The inputs held NaN or infinity.
            CalibrationError: No input was seen.
        """
        self._add_waiting()
        if self.n == 0:
            raise CalibrationError(f"layer {self.name!r}: no calibration data reached it")
        if not bool(torch.isfinite(self.centred).all()):
            raise NonFiniteError(f"layer {self.name!r}: its calibration inputs hold NaN or infinite values")
        varies = self.centred.diagonal() > self.n * (_ROUNDING * self.mean).square()
        centred = (self.centred + self.centred.T) / 2 * varies * varies[:, None]
        return InputStatistics(self.n, self.mean.clone(), centred, self._usual(centred))

    def _usual(self, centred: Tensor) -> Tensor:
        """Mean of each input, without the tokens of the sample in which it is massive, if there are any."""
        sample = self.sample.double()
        quarters = torch.quantile(sample, torch.tensor([0.25, 0.5, 0.75]).to(sample), dim=0)
        spread = (quarters[2] - quarters[0]).clamp_min(math.sqrt(typical_energy(centred) / self.n))
        usual = (sample - quarters[1]).abs() <= _MASSIVE * spread
        return torch.where(usual.all(0), self.mean, (sample * usual).sum(0) / usual.sum(0))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for key in ("mean", "centred", "sample", "keys"):
            incoming, current = state_dict.get(prefix + key), getattr(self, key)
            if incoming is not None and (self.n == 0 or key in ("sample", "keys")):
                setattr(self, key, torch.zeros(incoming.shape, dtype=current.dtype, device=current.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def first_by_key(keys: Tensor, rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """A random choice of rows that stays one when others join it: those of the smallest of the keys drawn for them.

    Args:
        keys: One random number a row, [rows].
        rows: [rows, ...], on any device.
        most: How many are kept.

    Returns:
        The keys that are kept, ascending, and their rows.
    """
    keys, order = keys.sort()
    return keys[:most], rows[order[:most].to(rows.device)]


def _gather(rows: Tensor) -> Tensor:
    """The rows of all ranks, which have as many each."""
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)
