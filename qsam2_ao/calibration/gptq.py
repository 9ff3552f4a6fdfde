"""Error-compensated rounding (GPTQ, arXiv 2210.17323) on the Gram matrix that VRC collects.

Weights are rounded column by column; what rounding one column does to the layer's output is made up for by the
columns that are still to come.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CalibrationError
from ..quantizers.affine import dequantize_affine, quantize_affine
from ..quantizers.output_error import held_down, typical_energy

_BLOCK = 64


def gptq_round(
    weight: Tensor,
    gram: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    *,
    damping: float = 0.01,
    name: str = "",
    compensation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """A weight on its quantization grid, rounded so that the layer's output changes little.

    Args:
        weight: [out, in], or [out, in, 1, 1] of a 1x1 convolution.
        gram: X^T X of the layer's inputs, centred where a bias makes up for the mean, [in, in].
        scale: Step of the grid, positive, broadcastable to [out, in].
        zero_point: Code that stands for zero, broadcastable to [out, in].
        quant_min: Smallest code.
        quant_max: Largest code.
        damping: Added to the diagonal, relative to its mean with massive inputs held down.
        name: Of the layer, for errors.
        compensation: What :func:`compensation_of` gave for this Gram matrix and damping, to round several times.

    Returns:
        ``(codes - zero_point) * scale`` in the shape and dtype of ``weight``.

    Raises:
        CalibrationError: ``gram`` does not fit the weight, is not finite, or cannot be factorized.

    Example:
        >>> scale, zero_point = torch.full((4, 1), 0.2), torch.full((4, 1), 1.5)
        >>> rounded = gptq_round(linear.weight, inputs.T @ inputs, scale, zero_point, 0, 3)
    """
    rows = weight.detach().reshape(weight.shape[0], -1).double()
    out, width = rows.shape
    if gram.shape != (width, width) or not bool(torch.isfinite(gram).all()):
        raise CalibrationError(
            f"layer {name!r}: rounding a weight of shape {list(weight.shape)} needs a finite Gram matrix of shape "
            f"[{width}, {width}], got {list(gram.shape)}"
        )
    order, inverse = compensation_of(gram, damping, name) if compensation is None else compensation
    # Columns are what is gone through: each is made one piece of memory.
    columns = rows.T[order].contiguous()
    scale, zero_point = (t.double().expand(out, width).T[order].float() for t in (scale, zero_point))
    rounded = torch.empty_like(columns)
    for start in range(0, width, _BLOCK):
        end = min(start + _BLOCK, width)
        errors = torch.empty(end - start, out, dtype=columns.dtype, device=columns.device)
        for k in range(start, end):
            codes = quantize_affine(columns[k], scale[k], zero_point[k], quant_min, quant_max)
            rounded[k] = dequantize_affine(codes, scale[k], zero_point[k])
            errors[k - start] = (columns[k] - rounded[k]) / inverse[k, k]
            columns[k + 1 : end].addr_(inverse[k, k + 1 : end], errors[k - start], alpha=-1)
        columns[end:].addmm_(inverse[start:end, end:].T, errors, alpha=-1)
    result = torch.empty_like(rounded)
    result[order] = rounded
    return result.T.contiguous().reshape(weight.shape).to(weight.dtype)


def compensation_of(gram: Tensor, damping: float, name: str = "") -> tuple[Tensor, Tensor]:
    """How columns make up for each other's rounding errors, which takes longer to find than to use.

    Massive inputs are held down (:func:`~qsam2_ao.quantizers.output_error.held_down`): the chance correlations of a few
    massive tokens with every other input are nothing to make up by.

    Args:
        gram: X^T X of the layer's inputs, [in, in], finite.
        damping: Added to the diagonal, relative to its mean with massive inputs held down.
        name: Of the layer, for errors.

    Returns:
        The order of the columns, and the upper Cholesky factor of the inverse of the damped Gram matrix in that order.

    Raises:
        CalibrationError: ``gram`` cannot be factorized.
    """
    hessian = held_down(gram.double()).clone()
    typical = typical_energy(hessian)
    silent = hessian.diagonal() <= 0
    hessian.diagonal().add_(torch.where(silent, typical or 1.0, damping * typical))
    # Inputs of much energy first: their rounding errors find the most columns left to make up for them.
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    factor, failed = torch.linalg.cholesky_ex(hessian[order][:, order])
    if failed:
        raise CalibrationError(f"layer {name!r}: its Gram matrix cannot be factorized; use more calibration images")
    return order, torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
