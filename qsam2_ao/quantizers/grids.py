"""The integer grids that weights and activations are quantized on: their codes and zero point rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import QConfigError

WEIGHT_GRIDS = ("midrise", "symmetric", "asymmetric", "mean")
MIN_SCALE = 1e-10
"""Floor of every scale: keeps an all-zero tensor finite (it then quantizes to zero to within this step)."""


class RangeStats(NamedTuple):
    """Statistics that a clip range is made of; float32 tensors of one shape, one value per scale.

    ``mean`` is the centre of the clip range (0 on zero-centred grids), ``std`` the root-mean-square deviation
    from that centre, ``low`` and ``high`` the observed extremes.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor


class ClipRange(NamedTuple):
    """A clip range on a grid: the quantization parameters and how they follow alpha."""

    scale: Tensor
    zero_point: Tensor
    scale_per_alpha: Tensor
    """d scale / d alpha of the unclipped ends."""
    at_limit: Tensor
    """True where alpha * std reaches the observed extremes, so that a larger alpha changes nothing."""
    factor: Tensor | None = None
    """What the gradient of alpha's logarithm is multiplied by, where a kernel has computed it with the range."""


@dataclass(frozen=True)
class Grid:
    """A uniform integer grid.

    Attributes:
        name: "midrise", "symmetric", "asymmetric", "mean", or "activation".
        bits: Bits per code.
        quant_min: Smallest code.
        quant_max: Largest code.
    """

    name: str
    bits: int
    quant_min: int
    quant_max: int

    @property
    def zero_centred(self) -> bool:
        """Whether the grid is symmetric about zero; its statistics are then taken about zero too."""
        return self.name in ("midrise", "symmetric")

    @property
    def steps(self) -> int:
        """Steps between the smallest and the largest code."""
        return self.quant_max - self.quant_min

    def clip_range(self, stats: RangeStats, alpha: Tensor) -> ClipRange:
        """Quantization parameters of the range mean ± alpha * std, kept within the observed extremes.

        Integer zero points need zero on the grid, so the "asymmetric" and "activation" ranges are widened to
        contain it; the other grids stay centred on the mean.

        Args:
            stats: Statistics, one value per scale.
            alpha: Half width of the range in standard deviations, broadcastable to the statistics.

        Returns:
            The range; all tensors in the statistics' shape, scale and zero point in float32.
        """
        mean, std, low, high = stats
        half = alpha * std
        widest = torch.maximum(high, -low) if self.zero_centred else torch.maximum(high - mean, mean - low)
        at_limit = half >= widest
        if self.name in ("asymmetric", "activation"):
            left = (mean - half).clamp(low, high).clamp_max(0)
            right = (mean + half).clamp(low, high).clamp_min(0)
            free_ends = ((left > low) & (left < 0)).float() + ((right < high) & (right > 0)).float()
            scale = ((right - left) / self.steps).clamp_min(MIN_SCALE)
            zero_point = torch.round(self.quant_min - left / scale).clamp(self.quant_min, self.quant_max)
            # With neither end free, alpha is at its limit and moves the end that it reaches.
            return ClipRange(scale, zero_point, free_ends.clamp_min(1) * std / self.steps, at_limit)
        scale = (torch.minimum(half, widest) * (2 / self.steps)).clamp_min(MIN_SCALE)
        centre = (self.quant_min + self.quant_max) / 2
        zero_point = torch.full_like(scale, centre) if self.zero_centred else centre - mean / scale
        return ClipRange(scale, zero_point, std * (2 / self.steps), at_limit)


def default_weight_grid(bits: int) -> str:
    """Grid name that weights of ``bits`` bits get by default: symmetric at 8 bits, mid-rise below.

    The mid-rise grid keeps all 2^b levels, which matters at 2 and 3 bits; at 8 bits the plain signed
    symmetric grid is what int8 kernels take as it is.
    """
    return "symmetric" if bits == 8 else "midrise"


def check_bit_width(bits: int, is_weight: bool) -> None:
    """Refuse bit widths that no quantizer has.

    Args:
        bits: 2 to 8.
        is_weight: Whether they are a weight's.

    Raises:
        QConfigError: Naming the bits and what is allowed.
    """
    if bits not in range(2, 9):
        raise QConfigError(f"{'weights' if is_weight else 'activations'} cannot have {bits!r} bits: choose 2 to 8")


def weight_grid(name: str | None, bits: int) -> Grid:
    """Weight grid by name.

    Args:
        name: One of :data:`WEIGHT_GRIDS`; None for the default of the bit width.
        bits: 2 to 8.

    Raises:
        QConfigError: Unknown grid or bit width.

    Example:
        >>> weight_grid("midrise", 2)
        Grid(name='midrise', bits=2, quant_min=0, quant_max=3)
    """
    check_bit_width(bits, is_weight=True)
    name = default_weight_grid(bits) if name is None else name
    if name not in WEIGHT_GRIDS:
        raise QConfigError(f"unknown weight grid {name!r}: choose one of {', '.join(WEIGHT_GRIDS)}")
    if name == "symmetric":
        return Grid(name, bits, -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1)
    return Grid(name, bits, 0, 2**bits - 1)


def activation_grid(bits: int) -> Grid:
    """Unsigned affine grid with an integer zero point, for activations.

    Args:
        bits: 2 to 8.

    Raises:
        QConfigError: Unknown bit width.
    """
    check_bit_width(bits, is_weight=False)
    return Grid("activation", bits, 0, 2**bits - 1)
