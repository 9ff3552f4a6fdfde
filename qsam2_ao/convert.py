"""convert_qsam2: the ranges that training learned -> integer codes -> a deployed model with packed weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, fx, nn
from torch.ao.quantization import FakeQuantizeBase

from .errors import CalibrationError, NonFiniteError, QConfigError, UnsupportedLayerError
from .fake_quant import (
    fake_quantizers,
    input_quantizer,
    layer_nodes,
    quantized_layers,
    without_input_quantizers,
)
from .graph import Part, find_parts
from .lowering.activation import ActivationQuantizer
from .lowering.deploy import deploy_part
from .lowering.plan import LayerPlan
from .prepare import prepare_qsam2
from .qconfig import QConfigLike
from .quantizers import broadcast_qparam
from .tensors.packed import PackedIntxTensor


def convert_qsam2(
    model: SAM2Base, qconfig: QConfigLike | None = None, calibration_data: Any = None, **prepare_options: Any
) -> SAM2Base:
    """Turn a prepared model into a deployed one: packed weights, and inputs quantized with the learned ranges.

    The integer codes, scales and zero points are those that the fake-quantized model uses in eval; nothing is
    estimated again, so both compute the same to the bit in float32.

    Args:
        model: A model from ``prepare_qsam2``, trained or not. With ``qconfig``: a float model, which is prepared
            first (post-training quantization in one step). It is not changed.
        qconfig: What to quantize, as for ``prepare_qsam2``.
        calibration_data: Images, as for ``prepare_qsam2``.
        prepare_options: Further keyword arguments of ``prepare_qsam2``.

    Returns:
        A model of the same class in eval mode, for SAM2's predictors and ``save_qsam2``.

    Raises:
        QConfigError: ``model`` is not prepared and no ``qconfig`` was given, or a quantizer of more than 8 bits.
        CalibrationError: The range of an input was never observed, naming the layer.
        NonFiniteError: NaN or infinity in a weight or range, naming the layer.

    Example:
        >>> quantized = convert_qsam2(prepared)
        >>> quantized = convert_qsam2(model, "w4a8", images)  # without training
    """
    if qconfig is not None:
        model = prepare_qsam2(model, qconfig, calibration_data=calibration_data, **prepare_options)
    elif not any(True for _ in fake_quantizers(model)):
        raise QConfigError(
            "the model is not prepared; call prepare_qsam2 first, or give convert_qsam2 a qconfig and calibration data"
        )
    converted = copy.deepcopy(model).eval()
    plans: list[LayerPlan] = []
    with torch.no_grad():
        for part in find_parts(converted):
            prepared = converted.get_submodule(part.path)
            if not isinstance(prepared, fx.GraphModule) or not any(True for _ in quantized_layers(prepared)):
                continue
            part_plans, weights, quantizers = _read_part(prepared, part)
            graph = without_input_quantizers(prepared)
            deploy_part(graph, part_plans, weights, quantizers)
            converted.set_submodule(part.path, graph)
            plans += part_plans
    converted.qsam2_plan = tuple(plans)
    return converted


def _read_part(
    prepared: fx.GraphModule, part: Part
) -> tuple[list[LayerPlan], dict[str, PackedIntxTensor], dict[str, ActivationQuantizer]]:
    layers = dict(quantized_layers(prepared))
    plans: list[LayerPlan] = []
    weights: dict[str, PackedIntxTensor] = {}
    quantizers: dict[str, ActivationQuantizer] = {}
    for name in [node for node in layer_nodes(prepared) if node in layers]:
        layer, where = layers[name], part.layer_name(name)
        packed = weights[name] = _pack_weight(layer.weight_fake_quant, layer.weight, where)
        found = input_quantizer(prepared, name)
        if found is not None and found[0] not in quantizers:
            quantizers[found[0]] = _activation_quantizer(found[1], where)
        plans.append(
            LayerPlan(
                region=part.region,
                part=part.path,
                layer=name,
                kind="conv2d" if isinstance(layer, nn.Conv2d) else "linear",
                shape=tuple(layer.weight.shape),
                bits=packed.bits,
                granularity=packed.granularity,
                group_size=packed.group_size,
                grid=getattr(layer.weight_fake_quant, "grid", type(layer.weight_fake_quant).__name__),
                activation=found[0] if found else None,
                activation_bits=quantizers[found[0]].bits if found else None,
            )
        )
    return plans, weights, quantizers


def _range(quantizer: FakeQuantizeBase, where: str) -> tuple[int, int, int]:
    """(quant_min, quant_max, bits) of a fake-quantizer, ours or torch.ao's."""
    observer = getattr(quantizer, "activation_post_process", quantizer)
    quant_min, quant_max = int(observer.quant_min), int(observer.quant_max)
    bits = max(2, math.ceil(math.log2(quant_max - quant_min + 1)))
    if bits > 8:
        raise QConfigError(f"{where}: {bits}-bit codes ({quant_min}..{quant_max}) do not fit in 8 bits")
    return quant_min, quant_max, bits


def _pack_weight(quantizer: FakeQuantizeBase, weight: Tensor, where: str) -> PackedIntxTensor:
    if not bool(torch.isfinite(weight).all()):
        raise NonFiniteError(f"{where}: the weight has NaN or infinite values; the training may have diverged")
    torch.ao.quantization.disable_observer(quantizer)
    torch.ao.quantization.enable_fake_quant(quantizer)
    fake_quantized = quantizer(weight)
    scale, zero_point = (torch.atleast_1d(t.detach().float()) for t in quantizer.calculate_qparams())
    quant_min, _, bits = _range(quantizer, where)
    group_size = getattr(quantizer, "group_size", None) if scale.dim() == 2 else None
    if scale.dim() == 1 and scale.numel() > 1 and getattr(quantizer, "ch_axis", 0) != 0:
        raise UnsupportedLayerError(
            f"{where}: its weight has one scale per index of dimension {quantizer.ch_axis}; packed weights have one "
            "per output channel (dimension 0)"
        )
    # Read the codes back from what the quantizer makes of the weight, whatever its rule of rounding.
    scale_b, zero_b = (broadcast_qparam(t, weight.shape, group_size) for t in (scale, zero_point))
    codes = torch.round(fake_quantized.float() / scale_b + zero_b)
    packed = PackedIntxTensor.from_codes(
        (codes - quant_min).to(torch.uint8), scale, zero_point - quant_min, bits, group_size
    )
    error = (packed.dequantize() - fake_quantized).abs().max()
    if not bool(error <= 1e-5 * fake_quantized.abs().max()):
        raise UnsupportedLayerError(
            f"{where}: packing would change the weight by {float(error):.3g}; its quantizer "
            f"({type(quantizer).__name__}) does not keep to its own scale and zero point"
        )
    return packed


def _activation_quantizer(quantizer: FakeQuantizeBase, where: str) -> ActivationQuantizer:
    observer = getattr(quantizer, "activation_post_process", None)
    if observer is not None and not bool(torch.isfinite(getattr(observer, "min_val", torch.zeros(1))).all()):
        raise CalibrationError(f"{where}: its input was never observed; give calibration data or train first")
    quant_min, quant_max, _ = _range(quantizer, where)
    scale, zero_point = quantizer.calculate_qparams()
    if scale.numel() != 1:
        raise UnsupportedLayerError(f"{where}: inputs are quantized per tensor, got {scale.numel()} scales")
    return ActivationQuantizer(quant_min, quant_max, scale, zero_point)
