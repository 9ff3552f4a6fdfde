"""The quantizers that the benchmark compares with, as members of a torch.ao ``QConfig``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.ao.quantization import PlaceholderObserver, QConfig

from ....errors import QConfigError
from ....quantizers.grids import check_bit_width
from .base import RivalFakeQuantize
from .lsq import LSQFakeQuantize
from .minmax import MinMaxFakeQuantize
from .pact_sawb import PACTFakeQuantize, SAWBFakeQuantize
from .torchao_ranges import TorchAOFakeQuantize

__all__ = [
    "RIVALS",
    "LSQFakeQuantize",
    "MinMaxFakeQuantize",
    "PACTFakeQuantize",
    "RivalFakeQuantize",
    "SAWBFakeQuantize",
    "TorchAOFakeQuantize",
    "rival_qconfig",
]

Pair = tuple[Callable[[int], Any], Callable[[int], Any]]


RIVALS: dict[str, Pair] = {
    "minmax": (
        lambda bits: MinMaxFakeQuantize.with_args(bits=bits, is_weight=True),
        lambda bits: MinMaxFakeQuantize.with_args(bits=bits),
    ),
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


def rival_qconfig(name: str, weight_bits: int, activation_bits: int | None) -> QConfig:
    """A rival's ``QConfig``: weights per output channel, inputs per tensor.

    - "minmax": torch.ao's ``FakeQuantize`` with moving averages of minimum and maximum, as in torch.ao's default QAT
      QConfig, at any bits. See :class:`MinMaxFakeQuantize`.
    - "lsq": LSQ (Esser et al., arXiv 1902.08153, sections 2 and 2.1) on torch.ao's learnable operators. Adapted: per
      channel for weights, and a zero point fixed by calibration for signed inputs. See :class:`LSQFakeQuantize`.
    - "lsq+": LSQ+ (Bhalgat et al., arXiv 2004.09576, sections 3.1 to 3.3). Adapted: per channel for weights, the
      inputs' start by a search over clips about the mean, and an integer zero point. See :class:`LSQFakeQuantize`.
    - "pact-sawb": PACT (Choi et al., arXiv 1805.06085, section 3) for inputs, adapted to signed ones by a second clip,
      and SAWB (Choi et al., arXiv 1807.06964) for weights, adapted per channel. See :mod:`.pact_sawb`.
    - "torchao": torchao's range learning, unchanged. Adapted: an input is one token, so that it has one range, and its
      zero point is an integer. See :class:`TorchAOFakeQuantize`.

    Args:
        name: One of ``RIVALS``.
        weight_bits: 2 to 8.
        activation_bits: 2 to 8, or None to leave the inputs in float.

    Returns:
        A QConfig for ``prepare_qsam2`` or for torch.ao's own graph mode.

    Raises:
        QConfigError: An unknown rival, or bits out of range.

    Example:
        >>> prepared = prepare_qsam2(model, rival_qconfig("lsq", 4, 8))
    """
    if name not in RIVALS:
        raise QConfigError(f"unknown rival {name!r}; the rivals are {', '.join(RIVALS)}")
    check_bit_width(weight_bits, is_weight=True)
    if activation_bits is not None:
        check_bit_width(activation_bits, is_weight=False)
    weight, activation = RIVALS[name]
    return QConfig(
        weight=weight(weight_bits),
        activation=PlaceholderObserver if activation_bits is None else activation(activation_bits),
    )
