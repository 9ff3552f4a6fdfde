"""convert_qsam2: the ranges that training learned -> integer codes -> a deployed model with packed weights."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, fx, nn
from torch.ao.quantization import FakeQuantize, FakeQuantizeBase

from .calibration import CalibrationData
from .deploy.assemble import deploy_part, record_layers
from .deploy.inputs import ActivationQuantizer
from .deploy.packed import PackedIntxTensor
from .deploy.record import LayerRecord
from .errors import CalibrationError, NonFiniteError, QConfigError, UnsupportedLayerError
from .graph import Part, as_part, find_parts, graph_of
from .models.wrappers import check_bare
from .prepare import prepare_qsam2
from .quantizers import LSCFakeQuantize, broadcast_qparam
from .recipe import QConfigLike
from .recipe.prepared import (
    code_range,
    fake_quantizers,
    input_quantizer,
    is_per_tensor,
    layer_nodes,
    quantized_layers,
    without_input_quantizers,
)
from .stage import stage_of


@torch.inference_mode(False)
def convert_qsam2(
    model: SAM2Base,
    qconfig: QConfigLike | None = None,
    calibration_data: CalibrationData | None = None,
    **prepare_options: Any,
) -> SAM2Base:
    """Turn a prepared model into a deployed one: packed weights, and inputs quantized with the learned ranges.

    The integer codes, scales and zero points are those that the fake-quantized model uses in eval; nothing is
    estimated again, so both compute the same to the bit in float32. Of a model that was cast to bfloat16 or float16
    they are the same, computed in float32 from its weights, and the result has its dtype.

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
        >>> quantized = convert_qsam2(model, {"mask_decoder": "w4a8"}, images)  # without training, and only a part
    """
    check_bare(model, "convert_qsam2")
    if qconfig is not None:
        model = prepare_qsam2(model, qconfig, calibration_data=calibration_data, **prepare_options)
    elif not any(True for _ in fake_quantizers(model)):
        if stage_of(model).layers:
            raise QConfigError("the model is converted already; save_qsam2 saves it")
        raise QConfigError(
            "the model is not prepared; call prepare_qsam2 first, or give convert_qsam2 a qconfig and calibration data"
        )
    converted = copy.deepcopy(model).eval()
    records: list[LayerRecord] = []
    with torch.no_grad():
        for part in find_parts(converted):
            module = converted.get_submodule(part.path)
            if not any(True for _ in quantized_layers(module)):
                continue
            prepared = graph_of(module)
            part_records, weights, quantizers = _read_part(prepared, part)
            graph = without_input_quantizers(prepared)
            deploy_part(graph, part_records, weights, quantizers)
            converted.set_submodule(part.path, as_part(graph))
            records += part_records
    record_layers(converted, records)
    return converted


def describe_layer(prepared: fx.GraphModule, part: Part, layer: str) -> LayerRecord:
    """What a fake-quantized layer of a part will be deployed as.

    Args:
        prepared: The part's fake-quantized graph.
        part: Which part it is.
        layer: Name of the layer in the graph.

    Returns:
        Its record.

    Raises:
        QConfigError: A quantizer of more than 8 bits.
    """
    module: Any = prepared.get_submodule(layer)
    where, quantizer = part.layer_name(layer), module.weight_fake_quant
    found = input_quantizer(prepared, layer)
    group_size = getattr(quantizer, "group_size", None)
    return LayerRecord(
        region=part.region,
        part=part.path,
        layer=layer,
        kind="conv2d" if isinstance(module, nn.Conv2d) else "linear",
        shape=tuple(module.weight.shape),
        bits=code_range(quantizer, where)[2],
        granularity="group" if group_size else "tensor" if is_per_tensor(quantizer) else "channel",
        group_size=group_size,
        grid=getattr(quantizer, "grid", type(quantizer).__name__),
        activation=found[0] if found else None,
        activation_bits=code_range(found[1], where)[2] if found else None,
    )


def _read_part(
    prepared: fx.GraphModule, part: Part
) -> tuple[list[LayerRecord], dict[str, PackedIntxTensor], dict[str, ActivationQuantizer]]:
    layers = dict(quantized_layers(prepared))
    records: list[LayerRecord] = []
    weights: dict[str, PackedIntxTensor] = {}
    quantizers: dict[str, ActivationQuantizer] = {}
    for name in [node for node in layer_nodes(prepared) if node in layers]:
        layer, where = layers[name], part.layer_name(name)
        record = describe_layer(prepared, part, name)
        weights[name] = _pack_weight(layer.weight_fake_quant, layer.weight, record)
        found = input_quantizer(prepared, name)
        if found is not None and found[0] not in quantizers:
            quantizers[found[0]] = _activation_quantizer(found[1], where)
        records.append(record)
    return records, weights, quantizers


def _pack_weight(quantizer: FakeQuantizeBase, weight: Tensor, record: LayerRecord) -> PackedIntxTensor:
    where, group_size = record.name, record.group_size
    if not bool(torch.isfinite(weight).all()):
        raise NonFiniteError(f"{where}: the weight has NaN or infinite values; the training may have diverged")
    quantizer.float().enable_fake_quant()
    if isinstance(quantizer, FakeQuantize) and _observed(quantizer):
        quantizer.disable_observer()
    fake_quantized = quantizer(weight.float())
    scale, zero_point = _qparams(quantizer)
    quant_min, _, _ = code_range(quantizer, where)
    if scale.dim() == 1 and scale.numel() > 1 and getattr(quantizer, "ch_axis", 0) != 0:
        raise UnsupportedLayerError(
            f"{where}: its weight has one scale per index of dimension {quantizer.ch_axis}; packed weights have one "
            "per output channel (dimension 0)"
        )
    # Read the codes back from what the quantizer makes of the weight, whatever its rule of rounding.
    scale_b, zero_b = (broadcast_qparam(t, weight.shape, group_size) for t in (scale, zero_point))
    codes = torch.round(fake_quantized / scale_b + zero_b)
    packed = PackedIntxTensor.from_codes(
        (codes - quant_min).to(torch.uint8), scale, zero_point - quant_min, record.bits, group_size, weight.dtype
    )
    error = (packed.dequantize(torch.float32) - fake_quantized).abs().max()
    if not bool(error <= 1e-5 * fake_quantized.abs().max()):
        raise UnsupportedLayerError(
            f"{where}: packing would change the weight by {float(error):.3g}; its quantizer "
            f"({type(quantizer).__name__}) does not keep to its own scale and zero point"
        )
    return packed


def _qparams(quantizer: FakeQuantizeBase) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the last forward; torch.ao's quantizers would estimate new ones on request."""
    if isinstance(quantizer, FakeQuantize):
        scale, zero_point = quantizer.scale, quantizer.zero_point
    elif isinstance(quantizer, LSCFakeQuantize):
        scale, zero_point = quantizer.qparams()
    else:
        scale, zero_point = cast(Any, quantizer).calculate_qparams()
    return torch.atleast_1d(scale.detach().float()), torch.atleast_1d(zero_point.detach().float())


def _observed(quantizer: FakeQuantize) -> bool:
    """Whether a fake-quantizer of torch.ao has ever seen data."""
    low = getattr(quantizer.activation_post_process, "min_val", torch.zeros(1))
    return low.numel() > 0 and bool(torch.isfinite(low).all())


def _activation_quantizer(quantizer: FakeQuantizeBase, where: str) -> ActivationQuantizer:
    if isinstance(quantizer, FakeQuantize) and not _observed(quantizer):
        raise CalibrationError(f"{where}: its input was never observed; give calibration data or train first")
    quant_min, quant_max, _ = code_range(quantizer, where)
    scale, zero_point = _qparams(quantizer)
    if scale.numel() != 1:
        raise UnsupportedLayerError(f"{where}: inputs are quantized per tensor, got {scale.numel()} scales")
    return ActivationQuantizer(quant_min, quant_max, scale, zero_point)
