"""How a weight's fake-quantizer starts: its range, from the weight and the layer's inputs, and its rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import QConfigError
from ..quantizers import LSCFakeQuantize, RangedFakeQuantize, broadcast_qparam
from .gptq import compensation_of, gptq_round

ROUNDINGS = ("nearest", "gptq")
# GPTQ is tried in ranges of these widths, relative to the best one for rounding to the nearest.
_MULTIPLES = (1.0, 0.9, 0.8, 0.7, 1.1, 1.2)
_DAMPING = 0.01


@torch.no_grad()
def start_quantizer(
    quantizer: Any, weight: Tensor, gram: Tensor | None = None, rounding: str = "nearest", name: str = ""
) -> Tensor:
    """Start the range of a weight's quantizer, and round the weight.

    Args:
        quantizer: The weight's fake-quantizer; ranges of other than learnable ones start by themselves.
        weight: [out, ...].
        gram: X^T X of the layer's inputs, or None where it is not known: the range then has the least error of the
            weight instead of the output's.
        rounding: "nearest" leaves the weight as it is; "gptq" puts it on the grid with the output's error
            compensated, where ``gram`` is known.
        name: Of the layer, for errors.

    Returns:
        The weight, rounded or as it was.

    Raises:
        QConfigError: Unknown rounding, or "gptq" for a quantizer whose grid follows something else than LSC's.

    Example:
        >>> layer.weight.copy_(start_quantizer(layer.weight_fake_quant, layer.weight, gram, "gptq"))
    """
    if rounding not in ROUNDINGS:
        raise QConfigError(f"unknown rounding {rounding!r}: choose one of {', '.join(ROUNDINGS)}")
    if not isinstance(quantizer, LSCFakeQuantize):
        if rounding != "nearest":
            raise QConfigError(f"{name}: rounding={rounding!r} needs LSC's quantizer, not {type(quantizer).__name__}")
        if isinstance(quantizer, RangedFakeQuantize):
            quantizer.initialize(weight)
        return weight
    quantizer.initialize(weight, gram)
    if rounding == "nearest" or gram is None:
        return weight
    return _round_in_best_range(quantizer, weight, gram, name)


def _round_in_best_range(quantizer: LSCFakeQuantize, weight: Tensor, gram: Tensor, name: str) -> Tensor:
    """Round by GPTQ with several multiples of the started alpha; each output channel keeps that of least error."""
    flat = (weight.shape[0], weight[0].numel())
    original, gram = weight.reshape(flat).double(), gram.double()
    compensation = compensation_of(gram, _DAMPING, name)
    alpha = started = quantizer.alpha_bar.clone()
    rounded = torch.empty_like(original)
    least = torch.full_like(original[:, 0], float("inf"))
    for multiple in _MULTIPLES:
        candidate_alpha = started * multiple
        _set_alpha(quantizer, candidate_alpha)
        scale, zero_point = (broadcast_qparam(t, flat, quantizer.group_size) for t in quantizer.qparams())
        candidate = gptq_round(
            weight,
            gram,
            scale,
            zero_point,
            *quantizer.codes,
            name=name,
            compensation=compensation,
        ).reshape(flat)
        difference = candidate.double() - original
        error = ((difference @ gram) * difference).sum(1)
        if quantizer.granularity == "tensor":
            error = error.sum().expand_as(least)
        better = error < least
        least = torch.where(better, error, least)
        rounded = torch.where(better[:, None], candidate.double(), rounded)
        # Alpha is [1], [out] or [out, groups].
        alpha = torch.where(better[: len(alpha)].reshape(-1, *[1] * (alpha.dim() - 1)), candidate_alpha, alpha)
    _set_alpha(quantizer, alpha)
    result = rounded.reshape(weight.shape).to(weight.dtype)
    quantizer.keep_scale(result)
    return result


def _set_alpha(quantizer: LSCFakeQuantize, alpha: Tensor) -> None:
    quantizer.log_alpha.copy_(alpha.log())
    quantizer.alpha_bar.copy_(alpha)
