"""Weights before and after quantization, and the ranges that they are clipped to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from ..deploy.packed import PackedIntxTensor
from ..deploy.record import LayerRecord
from ..quantizers import LSCFakeQuantize
from ..quantizers.grids import WEIGHT_GRIDS
from ..quantizers.sampling import even_sample
from ..reporting.coverage import deployed_path
from .layer_errors import float_layer


@dataclass(frozen=True)
class Limits:
    """What weights are clipped to, over all scales of a layer.

    Attributes:
        low: Of the lower limits the least, the median and the largest.
        high: Likewise.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer.

    Attributes:
        name: Path in the model.
        bits: Of the codes.
        before: A sample of the float model's weights.
        after: A sample of the quantized ones, as they are computed with.
        limits_before: The range that quantizing the float weights as they were would start from; None where the grid
            is not one of the package's.
        limits_after: The range of the file: of calibrated, and maybe trained, weights.
    """

    name: str
    bits: int
    before: Tensor
    after: Tensor
    limits_before: Limits | None
    limits_after: Limits


@torch.no_grad()
def layer_weights(quantized: SAM2Base, reference: SAM2Base, record: LayerRecord) -> LayerWeights:
    """The weights of a layer before and after.

    Args:
        quantized: From ``convert_qsam2``, or loaded with the target "packed".
        reference: The float model that it was made from.
        record: Of the layer.

    Raises:
        QSAM2Error: The models don't belong together.

    Example:
        >>> layer_weights(quantized, model, stage_of(quantized).layers[0]).bits
        8
    """
    packed = quantized.get_submodule(deployed_path(quantized, record)).weight
    assert isinstance(packed, PackedIntxTensor)
    weight = float_layer(reference, record).weight
    assert isinstance(weight, Tensor)
    low, high = -packed.zero_point * packed.scale, (2**packed.bits - 1 - packed.zero_point) * packed.scale
    return LayerWeights(
        record.name,
        record.bits,
        even_sample(weight).cpu(),
        even_sample(packed.dequantize(torch.float32)).cpu(),
        _started(weight, record),
        _limits(low, high),
    )


def _started(weight: Tensor, record: LayerRecord) -> Limits | None:
    """Where the quantizer starts without calibration."""
    if record.grid not in WEIGHT_GRIDS:
        return None
    quantizer = LSCFakeQuantize(
        record.bits,
        is_weight=True,
        granularity=record.granularity,
        group_size=record.group_size,
        grid=record.grid,
        name=record.name,
        factory_kwargs={"device": weight.device},
    )
    quantizer.initialize(weight)
    scale, zero_point, *_ = quantizer.final_qparams(weight)
    codes = quantizer.codes
    return _limits((codes[0] - zero_point) * scale, (codes[1] - zero_point) * scale)


def _limits(low: Tensor, high: Tensor) -> Limits:
    def summary(x: Tensor) -> tuple[float, float, float]:
        return float(x.min()), float(x.median()), float(x.max())

    return Limits(summary(low.float()), summary(high.float()))
