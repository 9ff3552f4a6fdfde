"""Input ranges with the least error of what the layers compute, and biases that make up for the mean of that error.

A channel that is large all the time and hardly varies, as vision transformers have, stretches the range that it
shares with all others, until few codes are left for these. Clipped, it loses little but a constant, which the biases
of the layers that read it give back. The least squared error of the input alone keeps the channel at any cost.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..quantizers import LSCFakeQuantize
from ..quantizers.statistics import world_size
from .gram import first_by_key

# Rows that are kept of an input: so many values in all, of at most so many rows of a call, and so many rows at least.
# Of fewer than that of a call, little can be said.
_VALUES, _PER_CALL, _FEWEST = 1 << 18, 64, 128
# No other range is looked for where the error of the output is no larger a share of what varies in it: rows that are
# not in the sample could lose more. (At 8 bits the image encoder of embedded-256 was then farther from the float one.)
_NOTICEABLE = 0.05
# Alphas that are tried, as multiples of the one of least input error. Another is taken where it lowers the error by a
# tenth: less is chance.
_MULTIPLES = (1.15, 0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05)
_WORTHWHILE = 0.9


class InputRows:
    """A bounded sample of the rows that layers read, in which every row so far is with the same chance.

    Args:
        axis: Of the channels: -1 of linear layers' inputs, -3 of 1x1 convolutions'.

    Example:
        >>> rows = InputRows(-1)
        >>> rows.add(torch.randn(2, 50, 6))
        >>> rows.sample().shape
        torch.Size([64, 6])
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._seen = 0
        self._keys = torch.empty(0)
        self._rows = torch.empty(0, 0)

    def add(self, x: Tensor) -> None:
        """Take in one input, or 64 of its rows; an empty one is ignored."""
        if x.numel() == 0:
            return
        rows = x.detach().movedim(self._axis, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        most = max(_VALUES // rows.shape[1], _FEWEST)
        generator = torch.Generator().manual_seed(self._seen)
        count = min(len(rows), _PER_CALL)
        # Spread evenly, from another row on in every call, which has the same places otherwise.
        offset = torch.rand(1, generator=generator, dtype=torch.float64)
        places = ((torch.arange(count) + offset) * len(rows) / count).long()
        keys = torch.rand(count, generator=generator)
        self._seen += count
        if len(self._keys) == most:
            chosen = keys < self._keys[-1]
            keys, places = keys[chosen], places[chosen]
        own = rows[places.to(rows.device)].float()
        joined = torch.cat([self._rows, own]) if len(self._rows) else own
        self._keys, self._rows = first_by_key(torch.cat([self._keys, keys]), joined, most)

    def hook(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook of what takes the input."""
        self.add(inputs[0])

    def sample(self) -> Tensor:
        """The rows, float32 [rows, channels]."""
        return self._rows

    def progress(self) -> dict[str, Any]:
        """All that was seen so far, as plain values and tensors that :meth:`go_on` takes."""
        return {"seen": self._seen, "keys": self._keys, "rows": self._rows}

    def go_on(self, progress: Mapping[str, Any], device: torch.device) -> None:
        """Continue from another one's :meth:`progress`.

        Args:
            progress: What it gave.
            device: Where the inputs are.
        """
        self._seen, self._keys, self._rows = progress["seen"], progress["keys"], progress["rows"].to(device)


@torch.no_grad()
def fit_to_outputs(
    quantizer: LSCFakeQuantize, rows: Tensor, layers: Sequence[nn.Module], before: LSCFakeQuantize | None = None
) -> None:
    """Choose the range of an input by the outputs of the layers that read it, and correct their biases, in place.

    Of each layer counts the squared error of its output relative to how the output varies; where the layer has a bias,
    that of the error about its mean, which the bias then takes back. Data-parallel ranks choose alike.

    Args:
        quantizer: The input's fake-quantizer, started.
        rows: Rows of the input, float32 [rows, channels]; with fewer than 64, nothing is changed.
        layers: All layers that read it, linear or 1x1 convolutions with fake-quantized weights.
        before: The quantizer that the layers' biases have been corrected, or trained, for; None for that of no
            quantizer at all.

    Example:
        >>> layer = copy.deepcopy(prepared.obj_ptr_proj.layers[0])
        >>> quantizer = LSCFakeQuantize(4)
        >>> with quantizer.calibrating():
        ...     rows = quantizer(torch.randn(64, layer.in_features) + 20)
        >>> fit_to_outputs(quantizer, rows, [layer])
    """
    weights = [_quantized_weight(layer) for layer in layers]
    if len(rows) == 0:
        rows = weights[0].new_zeros(0, weights[0].shape[1])
    count = _over_ranks(torch.tensor(float(len(rows)), device=rows.device))
    if float(count) < _PER_CALL:
        return
    usual = _over_ranks(rows.sum(0)) / count
    varying = [rows if layer.bias is None else rows - usual for layer in layers]
    energies = _squares(varying, weights).clamp_min(torch.finfo(torch.float32).tiny)
    started, mode = quantizer.alpha.clone(), quantizer.training
    quantizer.eval()

    def error_and_mean(alpha: Tensor) -> tuple[float, Tensor]:
        quantizer.set_alpha(alpha)
        difference = quantizer(rows) - rows
        mean = _over_ranks(difference.sum(0)) / count
        errors = _squares([difference if layer.bias is None else difference - mean for layer in layers], weights)
        return float((errors / energies).sum()), mean

    error, mean = error_and_mean(started)
    best, least = started, error * _WORTHWHILE
    for multiple in _MULTIPLES if error > _NOTICEABLE * len(layers) else ():
        error, other = error_and_mean(started * multiple)
        if error < least:
            best, least, mean = started * multiple, error, other
    quantizer.set_alpha(best)
    quantizer.train(mode)
    if before is not None:
        mean -= _over_ranks((before.eval()(rows) - rows).sum(0)) / count
    for layer, weight in zip(layers, weights, strict=True):
        if isinstance(layer.bias, Tensor):
            layer.bias -= (weight @ mean).to(layer.bias)


def _quantized_weight(layer: Any) -> Tensor:
    """As a matrix. A copy of the quantizer: looking at the weight is not to move its ranges."""
    weight: Tensor = copy.deepcopy(layer.weight_fake_quant).eval()(layer.weight.detach())
    return weight.flatten(1)


def _squares(rows: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Sum of squares of what each layer makes of its rows, over all ranks."""
    return _over_ranks(torch.stack([(x @ w.T).square().sum() for x, w in zip(rows, weights, strict=True)]))


def _over_ranks(values: Tensor) -> Tensor:
    """The sum over data-parallel ranks."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values
