"""The quantizers that the benchmark compares with, as members of a torch.ao ``QConfig``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PlaceholderObserver,
    QConfig,
)

from ...errors import QConfigError
from .base import RivalFakeQuantize
from .lsq import LSQFakeQuantize
from .pact_sawb import PACTFakeQuantize, SAWBFakeQuantize
from .torchao_ranges import TorchAOFakeQuantize

__all__ = [
    "BASELINES",
    "LSQFakeQuantize",
    "PACTFakeQuantize",
    "RivalFakeQuantize",
    "SAWBFakeQuantize",
    "TorchAOFakeQuantize",
    "baseline_qconfig",
]

Pair = tuple[Callable[[int], Any], Callable[[int], Any]]


def _minmax_weight(bits: int) -> Any:
    return FakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver,
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )


def _minmax_activation(bits: int) -> Any:
    return FakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=2**bits - 1,
        dtype=torch.quint8,
        qscheme=torch.per_tensor_affine,
    )


BASELINES: dict[str, Pair] = {
    "minmax": (_minmax_weight, _minmax_activation),
    "lsq": (
        lambda bits: LSQFakeQuantize.with_args(bits=bits, is_weight=True),
        lambda bits: LSQFakeQuantize.with_args(bits=bits),
    ),
    "lsq+": (
        lambda bits: LSQFakeQuantize.with_args(bits=bits, is_weight=True, plus=True),
        lambda bits: LSQFakeQuantize.with_args(bits=bits, plus=True),
    ),
    "pact-sawb": (
        lambda bits: SAWBFakeQuantize.with_args(bits=bits),
        lambda bits: PACTFakeQuantize.with_args(bits=bits),
    ),
    "torchao": (
        lambda bits: TorchAOFakeQuantize.with_args(bits=bits, is_weight=True),
        lambda bits: TorchAOFakeQuantize.with_args(bits=bits),
    ),
}
"""Name -> what makes the constructor of the weight's and of the input's quantizer at given bits."""


def baseline_qconfig(method: str, weight_bits: int, activation_bits: int | None) -> QConfig:
    """A rival's ``QConfig``: weights per output channel, inputs per tensor.

    - "minmax": torch.ao's ``FakeQuantize`` with moving averages of minimum and maximum, as torch.ao's own QAT.
    - "lsq", "lsq+": learned step size, see :class:`LSQFakeQuantize`.
    - "pact-sawb": PACT inputs and SAWB weights, see :mod:`.pact_sawb`.
    - "torchao": torchao's range learning, see :class:`TorchAOFakeQuantize`.

    Args:
        method: One of ``BASELINES``.
        weight_bits: 2 to 8.
        activation_bits: 4 to 8, or None to leave the inputs in float.

    Returns:
        A QConfig for ``prepare_qsam2`` or for torch.ao's own graph mode.

    Raises:
        QConfigError: An unknown method, or bits out of range.

    Example:
        >>> prepared = prepare_qsam2(model, baseline_qconfig("lsq", 4, 8), calibration_data=images, vrc=None)
    """
    if method not in BASELINES:
        raise QConfigError(f"unknown baseline {method!r}; the baselines are {', '.join(BASELINES)}")
    if weight_bits not in range(2, 9) or activation_bits not in (None, *range(4, 9)):
        raise QConfigError(
            f"baseline {method!r}: weights have 2 to 8 bits and inputs 4 to 8 or None, not {weight_bits!r} and "
            f"{activation_bits!r}"
        )
    weight, activation = BASELINES[method]
    return QConfig(
        weight=weight(weight_bits),
        activation=PlaceholderObserver if activation_bits is None else activation(activation_bits),
    )
