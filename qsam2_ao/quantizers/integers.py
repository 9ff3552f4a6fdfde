"""The grids in the integer codes that torch's quantized operations hold: int8 or uint8, with integer zero points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import QConfigError
from .grids import Grid

_SIGNED = (torch.int8, torch.qint8)


class IntegerCodes(NamedTuple):
    """A grid in integers: a value is ``(code - zero_point) * scale``."""

    scale: Tensor
    zero_point: Tensor
    """int32."""
    quant_min: int
    quant_max: int
    dtype: torch.dtype


def integer_range(grid: Grid, dtype: torch.dtype) -> tuple[int, int]:
    """Smallest and largest integer code of a grid.

    Args:
        grid: The grid.
        dtype: torch.int8 or torch.uint8, or torch.ao's names of them; it need not have that many codes.

    Example:
        >>> integer_range(weight_grid("midrise", 2), torch.int8)
        (-3, 3)
    """
    signed = dtype in _SIGNED
    steps = grid.steps * _steps_per_level(grid)
    low = 0 if not signed else -steps // 2 if grid.zero_centred else -(2 ** (grid.bits - 1))
    return low, low + steps


def integer_codes(grid: Grid, scale: Tensor, zero_point: Tensor, dtype: torch.dtype, who: str) -> IntegerCodes:
    """The same values in integer codes.

    The mid-rise grid's zero point lies between two codes. In half steps its codes are the odd ones of 2u - (L - 1)
    with zero point 0: exact in float32, since halving a scale is. A tensor must lie on the grid before it is rounded
    to them, as rounding alone would also give even codes.

    Args:
        grid: The grid.
        scale: Its scale, any shape.
        zero_point: Its zero point.
        dtype: torch.int8 or torch.uint8, or torch.ao's names of them.
        who: The quantizer, for errors.

    Returns:
        Scale, zero point and codes.

    Raises:
        QConfigError: A zero point that is no code ("mean"), or more codes than the dtype has.

    Example:
        >>> integer_codes(weight_grid("midrise", 2), torch.ones(1), torch.full((1,), 1.5), torch.int8, "fc")[2:4]
        (-3, 3)
    """
    if grid.name == "mean":
        raise QConfigError(
            f"{who}: the zero points of grid='mean' lie between its codes, which torch's quantized operations cannot "
            "hold; choose grid='midrise', 'symmetric' or 'asymmetric', or convert with this package's packed weights"
        )
    low, high = integer_range(grid, dtype)
    dtype = torch.int8 if dtype in _SIGNED else torch.uint8
    if high > torch.iinfo(dtype).max:
        raise QConfigError(
            f"{who}: the {grid.bits}-bit grid {grid.name!r} takes codes from {low} to {high}, too many for {dtype}; "
            "choose grid='symmetric' or 'asymmetric', or at most 7 bits"
        )
    per_level = _steps_per_level(grid)
    zeros = torch.round((zero_point - grid.quant_min) * per_level + low).to(torch.int32)
    return IntegerCodes(scale / per_level, zeros, low, high, dtype)


def _steps_per_level(grid: Grid) -> int:
    """Integer codes from one level to the next."""
    return 2 if grid.name == "midrise" else 1
