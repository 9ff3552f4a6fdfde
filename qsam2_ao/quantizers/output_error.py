"""How much of a layer's output an error of its weight costs, so that no input hides the others."""

from __future__ import annotations

import torch
from torch import Tensor

_MASSIVE = 100.0
"""An input of so many times the median energy (10 times its deviation) is massive."""


def typical_energy(gram: Tensor) -> float:
    """Mean of the diagonal of a Gram matrix in which no input counts for more than 100 times the median one.

    Args:
        gram: [K, K].

    Returns:
        Without massive inputs, the mean of the diagonal. The median is that of the inputs that are not silent.
    """
    energy = gram.diagonal().double().clamp_min(0)
    loud = energy[energy > 0]
    return float(energy.clamp_max(_MASSIVE * loud.median()).mean()) if len(loud) else 0.0


def held_down(gram: Tensor) -> Tensor:
    """A Gram matrix with every massive input scaled down to 100 times the median energy.

    A few tokens with a massive input outweigh all others in a sum of squares. What is best for that sum ruins the rest
    of the output; with the massive inputs held down, errors count about as they do relative to each token.

    Args:
        gram: [K, K].

    Returns:
        ``gram`` itself where no input is massive.
    """
    energy = gram.diagonal()
    loud = energy[energy > 0]
    if len(loud) == 0 or float(energy.max()) <= _MASSIVE * float(loud.median()):
        return gram
    factors = (_MASSIVE * loud.median() / energy.clamp_min(loud.min())).clamp_max(1).sqrt()
    return gram * factors * factors[:, None]


def measures_of(gram: Tensor) -> list[Tensor]:
    """The matrices G by which an error E is judged, as tr(E G E^T): better is what is better by all of them.

    Args:
        gram: [K, K].

    Returns:
        ``gram`` and, where it has massive inputs, the one with them held down.
    """
    other = held_down(gram)
    return [gram] if other is gram else [gram, other]


def worst_ratio(errors: Tensor, references: Tensor) -> Tensor:
    """How errors compare with those of a reference, by the measure in which they do worst.

    Args:
        errors: One row for each measure, [measures, ...].
        references: Of the same shape.

    Returns:
        The largest ratio, [...]; an error as large as its reference has the ratio 1, also where both are zero.
    """
    return torch.where(errors == references, 1.0, errors / references).amax(0)
