"""The layers of a float model that can be quantized, what they take at each bit-width, and their quantized forms."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import nn

from ..calibration.calibrate import calibrate_layer
from ..calibration.gram import InputStatistics
from ..calibration.report import VRCReport
from ..calibration.rounding import start_layer
from ..deploy.packed import PackedIntxTensor
from ..errors import GraphTraceError
from ..graph import REGIONS, find_parts
from ..recipe import fake_quantizers, lsc_qconfig
from ..recipe.backend import layers_of_part
from ..reporting.size import tensor_bytes
from ..stage import stage_of

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class QuantizableLayer:
    """A layer that ``prepare_qsam2`` would quantize.

    Attributes:
        name: Its path in the SAM2 model.
        region: The region that it belongs to.
        shape: Shape of its weight, output channels first.
    """

    name: str
    region: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """Number of its weights."""
        return torch.Size(self.shape).numel()

    def packed_bytes(self, bits: int) -> int:
        """What its weight takes packed, with one scale and zero point per output channel.

        Args:
            bits: 2 to 8.
        """
        return tensor_bytes(PackedIntxTensor.empty(self.shape, bits, device="meta"))


def quantizable_layers(model: SAM2Base) -> dict[str, QuantizableLayer]:
    """Every layer that ``prepare_qsam2`` would quantize if it quantized all regions.

    Args:
        model: A float model of the ``SAM2Base`` family.

    Returns:
        Name -> layer, region by region and in the order of the model within one.

    Raises:
        GraphTraceError: ``model`` is no SAM2, or is prepared or converted already.

    Example:
        >>> quantizable_layers(model)["obj_ptr_tpos_proj"].packed_bytes(4)
        1280
    """
    parts = find_parts(model)
    if stage_of(model).layers or any(True for _ in fake_quantizers(model)):
        raise GraphTraceError("the model is prepared or converted already; start from the float model")
    found = [
        QuantizableLayer(name, part.region, tuple(layer.weight.shape))
        for part in parts
        for name, layer in layers_of_part(part, model.get_submodule(part.path))
    ]
    found.sort(key=lambda layer: REGIONS.index(layer.region))
    return {layer.name: layer for layer in found}


@torch.no_grad()
def quantized_layer(
    name: str,
    layer: Layer,
    bits: int,
    inputs: InputStatistics | None = None,
    *,
    vrc: str | float | None = None,
    rounding: str = "nearest",
) -> Layer:
    """A layer as ``prepare_qsam2`` would start it, with the weight that its fake-quantizer (LSC, per channel) makes.

    Args:
        name: Of the layer, for errors.
        layer: ``nn.Linear`` or ``nn.Conv2d``; not changed.
        bits: 2 to 8.
        inputs: What is known of its inputs; None where nothing is: no VRC, no GPTQ, the range of least weight error,
            and the bias as it was.
        vrc: Damping of the variance-reduced calibration that comes first, "auto", or None for none.
        rounding: "nearest" or "gptq".

    Returns:
        A copy of the layer with its weight on the grid.
    """
    quantized = copy.deepcopy(layer)
    factory = lsc_qconfig(bits, None).weight
    if inputs is not None and vrc is not None:
        calibrate_layer(name, quantized, inputs, factory, VRCReport([], images=0), damping=vrc)
    quantizer = factory().to(layer.weight.device)
    start_layer(quantized, quantizer, inputs, rounding, name)
    quantized.weight.copy_(quantizer(quantized.weight))
    return quantized


@contextmanager
def replaced_parameters(layer: nn.Module, other: nn.Module) -> Iterator[None]:
    """Let a layer compute with the weight and bias of another inside the ``with`` block.

    Args:
        layer: Any layer.
        other: One with the same parameters.
    """
    original = copy.deepcopy(layer.state_dict())
    layer.load_state_dict(other.state_dict())
    try:
        yield
    finally:
        layer.load_state_dict(original)
