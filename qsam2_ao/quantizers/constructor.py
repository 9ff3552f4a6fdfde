"""What ``with_args`` returns, and what a flow of torch.ao or torchao may ask of a quantizer that is made by it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.ao.quantization.observer import _PartialWrapper as AOPartialWrapper
from torchao.quantization.pt2e import PartialWrapper as PT2EPartialWrapper

from ..errors import QConfigError
from .grids import Grid

_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
_SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric)
_SIGNED, _UNSIGNED = (torch.int8, torch.qint8), (torch.uint8, torch.quint8)


class QuantizerConstructor(AOPartialWrapper, PT2EPartialWrapper):
    """A class with some of its arguments, to be called for each instance.

    torch.ao's QConfigs and torchao's QuantizationSpecs each ask for their own wrapper class; this is both.

    Example:
        >>> make = LSCFakeQuantize.with_args(bits=4, is_weight=True)
        >>> make.with_args(grid="symmetric")()
        LSCFakeQuantize(bits=4, grid=symmetric, granularity=channel)
    """

    def with_args(self, **kwargs: Any) -> QuantizerConstructor:
        """The same with further arguments; later ones replace earlier ones."""
        return self._with(functools.partial(self.p, **kwargs), self.callable_args)

    def with_callable_args(self, **kwargs: Callable[[], Any]) -> QuantizerConstructor:
        """The same with arguments that are computed for each instance."""
        return self._with(self.p, {**self.callable_args, **kwargs})

    def _with(self, partial: functools.partial[Any], callable_args: dict[str, Any]) -> QuantizerConstructor:
        result = QuantizerConstructor(partial)
        result.callable_args = dict(callable_args)
        return result


def is_per_tensor(qscheme: torch.qscheme | None) -> bool:
    """Whether a scheme has one scale for a whole tensor."""
    return qscheme in _PER_TENSOR


def check_spec(
    grid: Grid,
    granularity: str,
    dtype: torch.dtype | None,
    quant_min: int | None,
    quant_max: int | None,
    qscheme: torch.qscheme | None,
    is_dynamic: bool,
) -> None:
    """Refuse a QuantizationSpec that asks for something else than the quantizer does.

    Args:
        grid: The quantizer's grid.
        granularity: Its granularity.
        dtype: Of the codes; None if it was not asked for, likewise the others.
        quant_min: Smallest code, of any numbering of the grid's codes.
        quant_max: Largest code.
        qscheme: Scales per tensor or channel, symmetric or not.
        is_dynamic: A new range for every batch.

    Raises:
        QConfigError: Naming the setting, and what agrees with it.
    """
    who = f"LSCFakeQuantize with bits={grid.bits}, grid={grid.name!r}, granularity={granularity!r}"
    if is_dynamic:
        raise QConfigError(f"{who}: its ranges are learned, not dynamic; leave is_dynamic out of the spec")
    if dtype is not None and dtype not in (*_SIGNED, *_UNSIGNED):
        raise QConfigError(f"{who}: its codes are stored in int8 or uint8, not {dtype}; choose one of them in the spec")
    if quant_min is not None and quant_max is not None:
        # Symmetric grids leave one code out, and the mid-rise grid is stored in steps of two.
        spans = {2**grid.bits - 1, 2**grid.bits - 2, 2 * grid.steps}
        if quant_max - quant_min not in spans:
            bits = (quant_max - quant_min).bit_length()
            raise QConfigError(
                f"{who}: the spec's codes from {quant_min} to {quant_max} are not of {grid.bits} bits; pass "
                f"with_args(bits={bits}), or leave quant_min and quant_max out of the spec"
            )
    if qscheme is None:
        return
    if is_per_tensor(qscheme) != (granularity == "tensor"):
        hint = "is_weight=True" if grid.name == "activation" else f"granularity={'tensor'!r} or a per-channel qscheme"
        raise QConfigError(f"{who}: the spec asks for {qscheme}; pass {hint}, or leave qscheme out of the spec")
    if qscheme in _SYMMETRIC and not grid.zero_centred:
        raise QConfigError(
            f"{who}: the spec asks for {qscheme}, and this grid is not symmetric; choose an affine qscheme"
            + ("" if grid.name == "activation" else ', or grid="midrise" or "symmetric"')
        )
