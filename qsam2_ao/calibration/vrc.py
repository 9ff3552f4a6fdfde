"""VRC, variance-reduced calibration of one layer: the ridge solve and the search for its lambda."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..optional import needed
from ..quantizers.output_error import measures_of, typical_energy, worst_ratio
from .report import LayerReport

AUTO_DAMPINGS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Relative lambdas that "auto" tries beside 0, which keeps the weight."""
HUGE_CONDITION = 1e12
_EXACT_CONDITION = 1024
# What lambdas are compared on: so many weights of a layer, and so many of its output channels at least.
_COMPARED_WEIGHTS, _FEWEST_CHANNELS = 1 << 18, 64
# "auto" changes a weight only where that lowers the error by a tenth, and counts the change of the float output twice
# beside it: on other data it is larger than on those that it is fitted to, and in one direction in every layer, where
# rounding errors average out. (The image features of validation frames are then no worse than without VRC.)
_WORTHWHILE, _CHANGE_COUNTS = 0.9, 2.0
# The Gram matrix is made of float32 products: with every input in units of its own deviation, eigenvalues below this
# share of the largest are rounding noise.
_NOISE = torch.finfo(torch.float32).eps


def is_damping(value: object) -> bool:
    """Whether a value is what ``damping`` may be: "auto", or a finite number that is not negative."""
    return value == "auto" or (isinstance(value, (int, float)) and 0 <= value < float("inf"))


def solve_vrc(weight: Tensor, gram: Tensor, damping: float, *, name: str = "") -> Tensor:
    """W_hat = W G (G + lambda I)^-1, the ridge regression of the layer's own output on its input.

    With the centred Gram matrix of a layer with a bias, what varies of the output is regressed on what varies of the
    input, and the bias has to take (W - W_hat) mean; see :class:`~qsam2_ao.calibration.gram.InputStatistics`.

    Solved in float64 by Cholesky as W - lambda W (G + lambda I)^-1. Every eigen-direction of G with
    eigenvalue g shrinks by g / (g + lambda). With ``damping`` 0 the limit is taken, the minimum-norm solution
    W X^+ X: directions that the data never visited vanish, everything else stays. Which those are is judged with every
    input in units of its own deviation, so that a massive one does not hide the others.

    Args:
        weight: [d_out, d_in], or [d_out, d_in, 1, 1] of a 1x1 convolution.
        gram: X^T X of the layer's inputs, centred or not, [d_in, d_in].
        damping: lambda over the mean of G's diagonal, in which no input counts for more than 100 times the median one;
            zero or positive.
        name: Of the layer, for error messages.

    Returns:
        Calibrated weight in the shape and dtype of ``weight``.

    Raises:
        CalibrationError: The shapes do not fit, ``gram`` is not finite or no Gram matrix, naming the layer.

    Example:
        >>> w_hat = solve_vrc(linear.weight, inputs.T @ inputs, damping=0.01)
    """
    flat = _flatten(weight, gram, name)
    if not 0 <= damping < float("inf"):
        raise CalibrationError(f"layer {name!r}: damping must be zero or positive, got {damping}")
    gram = gram.double()
    lam = damping * typical_energy(gram)
    if lam > 0:
        damped = gram.clone()
        damped.diagonal().add_(lam)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return (flat - lam * torch.cholesky_solve(flat.T, factor).T).reshape(weight.shape).to(weight.dtype)
    # lambda = 0, or so small that rounding noise makes the matrix indefinite.
    directions, energies = _visited(gram, name)
    keep = energies / (energies + lam)
    return ((flat @ directions) * keep @ directions.T).reshape(weight.shape).to(weight.dtype)


def _visited(gram: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues of G without rounding noise: [d_in, r] and [r], all positive."""
    deviation = gram.diagonal().clamp_min(0).sqrt()
    units = torch.where(deviation > 0, 1 / deviation, 0.0)
    try:
        values, vectors = torch.linalg.eigh(gram * units * units[:, None])
    except torch.linalg.LinAlgError as error:
        raise CalibrationError(
            f"layer {name!r}: cannot decompose its Gram matrix ({error}); use more calibration images"
        ) from error
    smallest, largest = float(values[0]), float(values[-1])
    if smallest < -1e-3 * abs(largest) or float(gram.diagonal().min()) < -1e-3 * float(gram.diagonal().max()):
        raise CalibrationError(
            f"layer {name!r}: its Gram matrix has a negative eigenvalue (relative to its inputs' deviations "
            f"{smallest:.3g}, largest {largest:.3g}), so the Cholesky solve fails; calibrate again in float32"
        )
    visited = values > _NOISE * largest
    directions, sizes, _ = torch.linalg.svd(
        deviation[:, None] * vectors[:, visited] * values[visited].sqrt(), full_matrices=False
    )
    return directions, sizes.square()


def output_energy(difference: Tensor, gram: Tensor) -> float:
    """tr(D G D^T): squared output, summed over the data, of the linear map D.

    Args:
        difference: D, [d_out, d_in] or [d_out, d_in, 1, 1].
        gram: G, [d_in, d_in].
    """
    flat = difference.reshape(difference.shape[0], -1).double()
    return max(0.0, float(((flat @ gram.double()) * flat).sum()))


def condition_number(gram: Tensor, n: int) -> float:
    """Ratio of the largest to the smallest eigenvalue of G; infinite for a singular G.

    Above 1024 columns, where eigenvalues take longer than all of VRC, it is LAPACK's estimate of the condition number
    in the 1-norm, which is at most d_in times off.

    Args:
        gram: [d_in, d_in].
        n: Rows of X; fewer than d_in make G singular.
    """
    if n < gram.shape[0]:
        return float("inf")
    gram = gram.double()
    if gram.shape[0] > _EXACT_CONDITION:
        lapack = needed("scipy.linalg").lapack  # here, because it would delay every import of the package
        factor, failed = torch.linalg.cholesky_ex(gram, upper=True)
        if failed:
            return float("inf")
        norm = float(gram.abs().sum(0).max())
        reciprocal, _ = lapack.dpocon(factor.cpu().numpy(), norm)
        return 1.0 / float(reciprocal) if reciprocal > 0 else float("inf")
    values = torch.linalg.eigvalsh(gram)
    smallest, largest = float(values[0]), float(values[-1])
    return largest / smallest if smallest > 0 else float("inf")


def calibrate_weight(
    weight: Tensor,
    gram: Tensor,
    n: int,
    quantize: Callable[[Tensor], Tensor],
    *,
    damping: float | str = "auto",
    tolerance: float = 0.01,
    name: str = "",
) -> tuple[Tensor, LayerReport]:
    """Calibrate one layer's weight and report what that did.

    With ``damping="auto"``, the lambda of a small grid that minimises the error of the quantized layer's
    output, tr((Q(W_hat) - W) G (Q(W_hat) - W)^T), with what it changes of the float output counted twice beside it.
    W is kept where that gains less than a tenth, so that the error never grows. Where inputs are massive, it is to
    shrink both as it is and with them held down (:func:`~qsam2_ao.quantizers.output_error.held_down`); likewise the
    change is to be small. In a layer of more than 2^18 weights that error, also the reported one, is of evenly spread
    output channels with so many weights, at least 64.

    Args:
        weight: [d_out, d_in], or [d_out, d_in, 1, 1] of a 1x1 convolution.
        gram: X^T X of the layer's inputs, centred where a bias takes (W - W_hat) mean, [d_in, d_in].
        n: Rows of X.
        quantize: Q, the quantized form of a weight at the bits, granularity and grid that the layer will get.
        damping: As for :func:`solve_vrc`, or "auto".
        tolerance: Largest relative change of the output's energy; a fixed damping beyond it is refused and W
            kept, "auto" leaves such a lambda out.
        name: Of the layer, for the report and for errors.

    Returns:
        The calibrated weight, in the shape and dtype of ``weight``, and the report.

    Raises:
        CalibrationError: As :func:`solve_vrc`, or an unknown ``damping``.
    """
    weight = weight.detach()
    _flatten(weight, gram, name)
    if not is_damping(damping):
        raise CalibrationError(f'damping must be "auto" or a finite number >= 0, got {damping!r}')
    gram = gram.double()
    layer = _Layer(weight, gram, quantize, name)
    before = layer.quantized_errors(weight[layer.compared])
    found = _Solution(weight, 0.0, torch.zeros_like(layer.energy), before)
    if not bool(layer.energy.all()):
        found = found._replace(refused="its inputs do not vary or its weight is all zero")
    elif damping == "auto":
        found = _best(layer, before, tolerance) or found
    else:
        found = _fixed(layer, float(damping), tolerance)
    return (weight.clone() if found.refused else found.weight), _report(layer, n, before, found, damping == "auto")


class _Layer:
    """A weight, the inputs it is for, and what changing it does to the output, under each measure of the inputs."""

    def __init__(self, weight: Tensor, gram: Tensor, quantize: Callable[[Tensor], Tensor], name: str) -> None:
        self.weight, self.gram, self.name = weight, gram, name
        self._quantize, self._measures = quantize, measures_of(gram)
        self.compared = _compared(weight, len(gram))
        self.energy, self.compared_energy = self.energies(weight), self.energies(weight[self.compared])

    def energies(self, difference: Tensor) -> Tensor:
        """Of the output."""
        return torch.tensor([output_energy(difference, measure) for measure in self._measures], dtype=torch.float64)

    def changes(self, solved: Tensor) -> Tensor:
        """Of the output in float, relative to its energy."""
        return self.energies(solved.double() - self.weight.double()) / self.energy

    def quantized_errors(self, candidate: Tensor) -> Tensor:
        """Of the compared channels' output, when their new weights are quantized."""
        return self.energies(self._quantize(candidate).double() - self.weight[self.compared].double())


class _Solution(NamedTuple):
    """A calibrated weight, its lambda, what it changes in float, its quantized error, and why it is not taken."""

    weight: Tensor
    damping: float
    change: Tensor
    after: Tensor
    refused: str | None = None


def _best(layer: _Layer, before: Tensor, tolerance: float) -> _Solution | None:
    """The best lambda of the grid, if one is worth it."""
    compared = layer.weight[layer.compared]
    errors: dict[float, Tensor] = {}
    ratios: dict[float, float] = {}
    for damping in AUTO_DAMPINGS:
        candidate = solve_vrc(compared, layer.gram, damping, name=layer.name)
        change = layer.energies(candidate.double() - compared.double())
        if bool((change > tolerance * layer.compared_energy).any()):
            break  # the change grows with lambda
        errors[damping] = layer.quantized_errors(candidate)
        ratios[damping] = float(worst_ratio(errors[damping] + _CHANGE_COUNTS * change, before))
    worthwhile = [damping for damping, ratio in ratios.items() if ratio < _WORTHWHILE]
    for damping in sorted(worthwhile, key=ratios.__getitem__):
        solved = solve_vrc(layer.weight, layer.gram, damping, name=layer.name)
        change = layer.changes(solved)
        if float(change.max()) <= tolerance:
            return _Solution(solved, damping, change, errors[damping])
    return None


def _fixed(layer: _Layer, damping: float, tolerance: float) -> _Solution:
    """The weight of a given lambda, refused where it changes the output too much."""
    solved = solve_vrc(layer.weight, layer.gram, damping, name=layer.name)
    change = layer.changes(solved)
    refused = None
    if float(change.max()) > tolerance:
        refused = f"output change {float(change.max()):.3g} is over the tolerance {tolerance:.3g}"
    return _Solution(solved, damping, change, layer.quantized_errors(solved[layer.compared]), refused)


def _report(layer: _Layer, n: int, before: Tensor, found: _Solution, auto: bool) -> LayerReport:
    weight, d_in, cond = layer.weight, len(layer.gram), condition_number(layer.gram, n)
    return LayerReport(
        layer=layer.name,
        shape=tuple(weight.shape),
        n=n,
        d_in=d_in,
        damping=found.damping,
        lam=found.damping * typical_energy(layer.gram),
        auto=auto,
        cond=cond,
        output_change=float(found.change[0]),
        norm_ratio=_ratio(float(found.weight.double().norm()), float(weight.double().norm())),
        std_before=_std(weight),
        std_after=_std(found.weight),
        kurtosis_before=_kurtosis(weight),
        kurtosis_after=_kurtosis(found.weight),
        max_before=float(weight.abs().max()),
        max_after=float(found.weight.abs().max()),
        quantized_error_before=_ratio(float(before[0]), float(layer.compared_energy[0]), 0.0),
        quantized_error_after=_ratio(float(found.after[0]), float(layer.compared_energy[0]), 0.0),
        refused=found.refused,
        warnings=_data_warnings(n, d_in, cond),
    )


def _compared(weight: Tensor, d_in: int) -> Tensor:
    """The output channels that quantization errors are compared on: all of a small layer's, some of a large one's."""
    count = min(len(weight), max(_FEWEST_CHANNELS, _COMPARED_WEIGHTS // d_in))
    return torch.arange(count, device=weight.device) * len(weight) // count


def _flatten(weight: Tensor, gram: Tensor, name: str) -> Tensor:
    """Weight as [d_out, d_in] in float64, after checking both operands."""
    flat = weight.detach().reshape(weight.shape[0], -1).double()
    if gram.shape != (flat.shape[1], flat.shape[1]):
        raise CalibrationError(
            f"layer {name!r}: a Gram matrix of shape {list(gram.shape)} does not fit a weight of shape "
            f"{list(weight.shape)}"
        )
    for what, tensor in (("Gram matrix", gram), ("weight", flat)):
        if not bool(torch.isfinite(tensor.sum())):  # which takes a fraction of the time of looking at every value
            raise CalibrationError(
                f"layer {name!r}: its {what} holds NaN or infinite values; check the calibration images and "
                "the float checkpoint"
            )
    return flat


def _data_warnings(n: int, d_in: int, cond: float) -> list[str]:
    if n < d_in:
        return [f"n={n} < d_in={d_in}: use more images"]
    if cond > HUGE_CONDITION:
        return [f"cond(G)={cond:.0e}: some directions are hardly visited"]
    return []


def _ratio(a: float, b: float, otherwise: float = 1.0) -> float:
    return a / b if b > 0 else otherwise


def _std(weight: Tensor) -> float:
    return float(weight.double().std(correction=0))


def _kurtosis(weight: Tensor) -> float:
    """Excess kurtosis, 0 for a normal distribution and for a constant weight."""
    centred = weight.double() - weight.double().mean()
    var = float(centred.square().mean())
    return float(centred.pow(4).mean()) / var**2 - 3 if var > 0 else 0.0
