"""How a weight is rounded at the start: its quantizer's range, nearest or GPTQ, and the bias that makes up for it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase

from ..errors import QConfigError
from ..quantizers import LSCFakeQuantize, RangedFakeQuantize, broadcast_qparam, fake_quantize_affine
from ..quantizers.output_error import measures_of, worst_ratio
from .gptq import compensation_of, gptq_round
from .gram import InputStatistics

ROUNDINGS = ("nearest", "gptq")
# GPTQ is tried in ranges of these widths, relative to the best one for rounding to the nearest.
_MULTIPLES = (1.0, 0.9, 0.8, 0.7, 1.1, 1.2)
_DAMPING = 0.01
# How far from its code, in steps of the grid, a weight may stay where it was: training then changes close calls first.
# On their codes, none changes for long; at the ends of their bins (1/2), GPTQ's choices are lost at once. Part by part
# with W2A4, 150 steps leave embedded-256 a distance of 0.231 from float with 0, 0.212 with 1/4 and 0.246 with 1/2.
_REACH = 0.25
# Elements of the candidates that are rounded at once: 64 MiB in double precision, a few times over.
_AT_ONCE = 2**23


@torch.no_grad()
def start_layer(
    layer: nn.Module,
    quantizer: FakeQuantizeBase,
    inputs: InputStatistics | None = None,
    rounding: str = "nearest",
    name: str = "",
) -> None:
    """Start a layer's weight quantizer, round its weight, and let its bias make up for the mean of what is rounded off.

    With the bias, the quantized layer's mean output on the calibration data is the float layer's, so that the range
    and the rounding see to what varies. Without one, or without ``inputs``, the mean's error stays.

    Args:
        layer: A layer with a weight and perhaps a bias, changed in place.
        quantizer: The weight's fake-quantizer.
        inputs: Of a linear layer or 1x1 convolution; None where they are not known.
        rounding: As for :func:`start_quantizer`.
        name: Of the layer, for errors.

    Raises:
        QConfigError: As :func:`start_quantizer`.
    """
    parameter = cast(Tensor, layer.weight)
    weight = parameter.detach().clone()
    gram = None if inputs is None else inputs.gram_for(layer)
    parameter.copy_(start_quantizer(quantizer, weight, gram, rounding, name))
    if inputs is not None:
        # A copy of the quantizer: looking at the weight is not to move its ranges.
        inputs.into_bias(layer, weight - copy.deepcopy(quantizer)(parameter.detach()))


@torch.no_grad()
def start_quantizer(
    quantizer: FakeQuantizeBase, weight: Tensor, gram: Tensor | None = None, rounding: str = "nearest", name: str = ""
) -> Tensor:
    """Start the range of a weight's quantizer, and round the weight.

    Args:
        quantizer: The weight's fake-quantizer. torch.ao's own observe the weight by themselves and are not started.
        weight: [out, ...].
        gram: X^T X of the layer's inputs, centred where a bias makes up for the mean; None where it is not known: the
            range then has the least error of the weight instead of the output's.
        rounding: "nearest" leaves the weight as it is; "gptq" moves it to where the quantizer rounds it to the codes
            that have the output's error compensated, where ``gram`` is known.
        name: Of the layer, for errors.

    Returns:
        The weight, near its codes or as it was.

    Raises:
        QConfigError: Unknown rounding, or "gptq" for a quantizer whose grid follows something else than LSC's.

    Example:
        >>> quantizer = LSCFakeQuantize(bits=4, is_weight=True)
        >>> rounded = start_quantizer(quantizer, linear.weight, inputs.T @ inputs, "gptq")
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
    """Round by GPTQ with several multiples of the started alpha; each output channel keeps that of least error.

    A channel for which all are worse than rounding to the nearest, by any measure, is rounded to the nearest. What is
    returned is the weight itself as far as it is near its code, which the quantizer makes of it.
    """
    flat = (weight.shape[0], weight[0].numel())
    original, gram = weight.reshape(flat).double(), gram.double()
    measures = measures_of(gram)
    compensation = compensation_of(gram, _DAMPING, name)

    def errors(candidate: Tensor) -> Tensor:
        difference = candidate - original
        found = torch.stack([((difference @ measure) * difference).sum(1) for measure in measures])
        return found.sum(1, keepdim=True).expand_as(found) if quantizer.granularity == "tensor" else found

    def candidates(alphas: list[Tensor]) -> Iterator[Tensor]:
        """Rows are rounded one by one, so several candidates go through at once, as far as memory is no matter."""
        together = max(_AT_ONCE // original.numel(), 1)
        for first in range(0, len(alphas), together):
            qparams = []
            for candidate_alpha in alphas[first : first + together]:
                quantizer.set_alpha(candidate_alpha)
                qparams.append([t.expand(flat) for t in _qparams(quantizer, flat)])
            scale, zero_point = (torch.cat(parts) for parts in zip(*qparams, strict=True))
            rows = original.repeat(len(qparams), 1)
            rounded = gptq_round(rows, gram, scale, zero_point, *grid, name=name, compensation=compensation)
            yield from rounded.chunk(len(qparams))

    alpha = started = quantizer.alpha_bar.clone()
    grid = quantizer.codes
    rounded = fake_quantize_affine(original, *_qparams(quantizer, flat), *grid).double()
    references = errors(rounded)
    least = torch.ones_like(references[0])
    alphas = [started * multiple for multiple in _MULTIPLES]
    for candidate_alpha, candidate in zip(alphas, candidates(alphas), strict=True):
        error = worst_ratio(errors(candidate), references)
        better = error < least
        least = torch.where(better, error, least)
        rounded = torch.where(better[:, None], candidate, rounded)
        # Alpha is [1], [out] or [out, groups].
        alpha = torch.where(better[: len(alpha)].reshape(-1, *[1] * (alpha.dim() - 1)), candidate_alpha, alpha)
    quantizer.set_alpha(alpha)
    reach = _REACH * _qparams(quantizer, flat)[0]
    result = original.clamp(rounded - reach, rounded + reach).reshape(weight.shape).to(weight.dtype)
    quantizer.keep_scale(result)
    return result


def _qparams(quantizer: LSCFakeQuantize, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scale and zero point that broadcast against the weight as a matrix."""
    scale, zero_point = quantizer.qparams()
    return broadcast_qparam(scale, shape, quantizer.group_size), broadcast_qparam(
        zero_point, shape, quantizer.group_size
    )
