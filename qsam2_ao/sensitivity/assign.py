"""One bit-width per layer: the least sum of measured losses within a budget of bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base

from ..errors import QConfigError
from ..optional import needed
from .assignment import Assignment, is_first_or_last
from .layers import QuantizableLayer, quantizable_layers
from .measure import Sensitivity

FIRST_LAST_BITS = 8
# HiGHS stops within an absolute gap of 1e-6 of the optimum: make that small beside the losses.
_LARGEST_OBJECTIVE = 1e4


@dataclass(frozen=True)
class Choice:
    """One option out of the options of a layer: what it costs and what it takes.

    Attributes:
        loss: Any finite number.
        size: Bytes, not negative.
    """

    loss: float
    size: int


def choose(options: Sequence[Sequence[Choice]], budget: int) -> list[int]:
    """Pick one choice of each group: the least sum of losses whose sizes fit the budget (multiple-choice knapsack).

    Solved exactly as a mixed-integer linear program by HiGHS.

    Args:
        options: Groups of choices, none of them empty.
        budget: The most that all sizes together may take.

    Returns:
        The index of the choice in each group.

    Raises:
        QConfigError: Even the smallest choices do not fit, naming their size.

    Example:
        >>> choose([[Choice(5, 1), Choice(0, 2)], [Choice(1, 1), Choice(0, 2)]], 3)
        [1, 0]
    """
    optimize = needed("scipy.optimize")  # here, because it would delay every command's start
    smallest = sum(min(choice.size for choice in group) for group in options)
    _require(smallest, budget)
    owner = np.repeat(np.arange(len(options)), [len(group) for group in options])
    losses = np.array([choice.loss for group in options for choice in group], dtype=np.float64)
    # Counted from each group's smallest choice the numbers are shorter, and so are rounding errors.
    extra = np.array([c.size - min(d.size for d in group) for group in options for c in group], dtype=np.float64)
    regret = np.array([c.loss - min(d.loss for d in group) for group in options for c in group])
    worst = regret.max(initial=0.0)
    objective = regret / worst * _LARGEST_OBJECTIVE if worst > 0 else regret
    one_each = optimize.LinearConstraint((owner == np.arange(len(options))[:, None]).astype(np.float64), 1, 1)
    room = float(budget - smallest)
    while True:
        result = optimize.milp(
            objective,
            integrality=np.ones(len(losses)),
            bounds=optimize.Bounds(0, 1),
            constraints=[one_each, optimize.LinearConstraint(extra[None, :], -np.inf, room)],
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            raise QConfigError(f"the solver found no assignment for {budget:,} bytes ({result.message})")
        taken = float(extra[_picked(result.x, owner)].sum())
        if taken <= budget - smallest:
            break
        # Within its tolerance the solver may overdraw the budget by a few bytes.
        room -= max(1.0, taken - (budget - smallest))
    picked = _picked(result.x, owner)
    starts = np.searchsorted(owner, np.arange(len(options)))
    return [int(p - s) for p, s in zip(picked, starts, strict=True)]


def _require(smallest: int, budget: int) -> None:
    if smallest > budget:
        raise QConfigError(
            f"a budget of {budget:,} bytes is too small: the smallest possible size is {smallest:,} bytes"
        )


def _picked(values: NDArray[np.float64], owner: NDArray[np.int_]) -> NDArray[np.int_]:
    """Index of the largest value in each group."""
    return np.array([int(np.flatnonzero(owner == g)[values[owner == g].argmax()]) for g in range(owner[-1] + 1)])


def assign_bits(
    sensitivity: Sensitivity, budget: int, *, first_and_last: bool = False, first_last_bits: int = FIRST_LAST_BITS
) -> Assignment:
    """Choose the bits of every measured layer within a budget.

    Args:
        sensitivity: What each layer costs at each bit-width.
        budget: Bytes that the packed weights of all these layers may take, scales and zero points included, as
            ``model_size(...).packed_bytes`` counts them (see :func:`budget_bytes`).
        first_and_last: Choose the bits of the first and last layers as well, instead of fixing them as the presets do.
        first_last_bits: What they are fixed at.

    Returns:
        The assignment; of all within the budget none has a smaller sum of losses.

    Raises:
        QConfigError: A budget below the smallest possible size, which the message names.

    Example:
        >>> assignment = assign_bits(sensitivity, budget_bytes("w3", model))
        >>> prepared = prepare_qsam2(model, assignment.qconfig(8))
    """
    widths = sensitivity.bits
    free = [layer.name for layer in sensitivity.layers if first_and_last or not is_first_or_last(layer.name)]
    if not free:
        raise QConfigError("only first and last layers were measured, whose bits are fixed; measure others too")
    # A layer whose bits are fixed has one choice.
    options = [
        [Choice(sensitivity.loss(layer.name, bits), layer.packed_bytes(bits)) for bits in widths]
        if layer.name in free
        else [Choice(0.0, layer.packed_bytes(first_last_bits))]
        for layer in sensitivity.layers
    ]
    picked = choose(options, budget)
    chosen = [group[k] for group, k in zip(options, picked, strict=True)]
    bits = {layer.name: widths[k] for layer, k in zip(sensitivity.layers, picked, strict=True) if layer.name in free}
    return Assignment(
        bits=bits,
        loss=sum(choice.loss for choice in chosen),
        bytes=sum(choice.size for choice in chosen),
        budget=budget,
        metric=sensitivity.metric,
        first_last_bits=first_last_bits,
    )


def check_budget(
    layers: Mapping[str, QuantizableLayer],
    budget: int,
    fewest_bits: int,
    *,
    first_and_last: bool = False,
    first_last_bits: int = FIRST_LAST_BITS,
) -> None:
    """Say before anything is measured that no assignment can fit a budget.

    Args:
        layers: As ``quantizable_layers`` gives them.
        budget: As for :func:`assign_bits`, likewise ``first_and_last`` and ``first_last_bits``.
        fewest_bits: The smallest bit-width to choose from.

    Raises:
        QConfigError: The budget is below the smallest possible size, which the message names.
    """
    fixed = {name for name in layers if not first_and_last and is_first_or_last(name)}
    _require(sum(la.packed_bytes(first_last_bits if n in fixed else fewest_bits) for n, la in layers.items()), budget)


def uniform_bytes(layers: Mapping[str, QuantizableLayer], bits: int, first_last_bits: int = FIRST_LAST_BITS) -> int:
    """What the packed weights take when all layers have ``bits``, the first and last ones no fewer than given.

    Args:
        layers: As ``quantizable_layers`` gives them.
        bits: 2 to 8.
        first_last_bits: As the presets have it.
    """
    edge = max(bits, first_last_bits)
    return sum(layer.packed_bytes(edge if is_first_or_last(name) else bits) for name, layer in layers.items())


def budget_bytes(text: str, layers: Mapping[str, QuantizableLayer] | SAM2Base) -> int:
    """What people write as a budget, in bytes.

    Args:
        text: "w3" (the size of uniform 3 bits, with the first and last layers at 8), a number up to 8 (average bits per
            weight, scales and zero points included), or a larger number (bytes).
        layers: The layers that it is for, or a float model.

    Returns:
        Bytes of the packed weights.

    Raises:
        QConfigError: It is none of these.

    Example:
        >>> budget_bytes("w3", model), budget_bytes("3.5", model), budget_bytes("1104152", model)
        (1109272, 1115913, 1104152)
    """
    known = layers if isinstance(layers, Mapping) else quantizable_layers(layers)
    if match := re.fullmatch(r"w([2-8])", text):
        return uniform_bytes(known, int(match[1]))
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise QConfigError(f"a budget is w2 to w8, average bits such as 3.2, or bytes such as 1104152, not {text!r}")
    return int(number * sum(layer.values for layer in known.values()) / 8) if number <= 8 else int(number)
