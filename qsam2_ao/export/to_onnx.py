"""Deployed models as ONNX files: quantize-dequantize pairs, weights of up to 4 bits as INT4 where they fit."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base

from ..files import atomic_write
from ..optional import needed
from ..predictors import check_float32
from ..progress import tqdm
from .parts import ExportPart, check_on_cpu, export_parts
from .qdq import for_export, saturating_layers
from .settings import ExportSettings

OPSET = 21
"""The first with 4-bit integers."""


def export_onnx(model: SAM2Base, folder: str | os.PathLike[str], *, progress: bool = True) -> list[Path]:
    """Write the image encoder, the mask decoder, memory attention and the memory encoder as ONNX files.

    Inputs and outputs are those of the modules in :mod:`.parts`, for one image or object at a time. The numbers of
    clicks, memory frames and object pointers are free. RoPE is in real arithmetic.

    Args:
        model: From ``load_qsam2`` with ``target="packed"``.
        folder: Where ``image_encoder.onnx`` and so on go; each is written whole or not at all.
        progress: Whether to show a bar.

    Returns:
        The files.

    Warns where weights may saturate on CPUs without VNNI.

    Raises:
        QSAM2Error: The packages ``onnx`` and ``onnxscript`` are missing, the model was cast to another dtype than
            float32, or a file cannot be written.
        UnsupportedLayerError: A layer or a setting has no form in ONNX, naming it, or the model is not on the CPU.

    Example:
        >>> export_onnx(load_qsam2("tiny-w4a8.safetensors"), "tiny-w4a8-onnx")  # doctest: +SKIP
    """
    for package in ("onnx", "onnxscript"):
        needed(package)
    check_on_cpu(model, "files are exported on the CPU")
    check_float32(model)
    parts = export_parts(for_export(model))
    if wide := saturating_layers(model):
        warnings.warn(
            f"{len(wide)} layers ({wide[0]}{', ...' if len(wide) > 1 else ''}) multiply 8-bit inputs and weights. On "
            "x86 CPUs without VNNI (AVX2 or AVX512 alone) runtimes add two such products in 16 bits, which saturate: "
            "masks may be wrong there. Compare them with the packed model's on such a CPU, or quantize these layers to "
            "7 bits, whose products fit (--first-last-bits 7, where the other weights have fewer than 8)",
            stacklevel=2,
        )
    files = []
    for part in tqdm(parts, desc="exporting", unit="file", disable=not progress):
        path = Path(folder) / f"{part.name}.onnx"
        proto = _convert(part)
        _pack_int4(proto)
        _drop_origins(proto)
        ExportSettings.remove(Path(folder))
        with atomic_write(path) as temporary:
            temporary.write_bytes(proto.SerializeToString())
        files.append(path)
    ExportSettings.of(model, "onnx").save(Path(folder))
    return files


def _convert(part: ExportPart) -> Any:
    dynamic = {name: dict.fromkeys(part.dynamic.get(name, {}), torch.export.Dim.DYNAMIC) for name in part.inputs}
    with torch.no_grad():
        program = torch.onnx.export(
            part.module.eval(),
            tuple(part.inputs.values()),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=tuple(dynamic.values()),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            custom_translation_table=_translations(),
        )
    assert program is not None
    return program.model_proto


def _drop_origins(proto: Any) -> None:
    """Stack traces with the paths of this machine, and torch's own record of the graph: half of a small file."""
    graph = proto.graph
    for holder in (proto, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del holder.metadata_props[:]


def _translations() -> dict[Any, Any]:
    from onnxscript import opset21 as op

    def quantize_dequantize(x: Any, scale: Any, zero_point: Any, low: Any, high: Any) -> Any:
        return op.DequantizeLinear(op.QuantizeLinear(op.Clip(x, low, high), scale, zero_point), scale, zero_point)

    def dequantize(values: Any, scale: Any) -> Any:
        return op.DequantizeLinear(values, scale, axis=0)

    ops = torch.ops.qsam2_export
    return {ops.quantize_dequantize.default: quantize_dequantize, ops.dequantize.default: dequantize}


def _pack_int4(proto: Any) -> None:
    """Weights whose values are within -8 and 7, as two to a byte."""
    import onnx

    weights = {node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    for tensor in proto.graph.initializer:
        if tensor.name not in weights or tensor.data_type != onnx.TensorProto.INT8:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.size and values.min() >= -8 and values.max() <= 7:
            low = (values.reshape(-1) & 15).astype(np.uint8)
            low = np.append(low, np.zeros(low.size % 2, np.uint8))
            tensor.data_type = onnx.TensorProto.INT4
            tensor.raw_data = (low[::2] | low[1::2] << 4).tobytes()
