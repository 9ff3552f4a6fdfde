"""Exported parts in their runtimes, against the modules that they were exported from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2_runs import error, noisy
from torch import Tensor

from qsam2_ao.export.parts import ExportPart
from qsam2_ao.export.runtimes import openvino_core
from qsam2_ao.stage import stage_of

Outputs = list[np.ndarray]
Runner = Callable[[Path, Mapping[str, Tensor]], Outputs]


def in_onnx_runtime(path: Path, inputs: Mapping[str, Tensor]) -> Outputs:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


def in_openvino(path: Path, inputs: Mapping[str, Tensor]) -> Outputs:
    pytest.importorskip("openvino")
    compiled = openvino_core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled.create_infer_request().infer({name: value.numpy() for name, value in inputs.items()})
    return [results[i] for i in range(len(compiled.outputs))]


def _torch_run(part: ExportPart, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        out = part.module(*inputs.values())
    return list(out) if isinstance(out, tuple) else [out]


def _check(path: Path, run: Runner, part: ExportPart, inputs: Mapping[str, Tensor]) -> None:
    """A runtime may move what noise of a thousandth moves in torch: some inputs of later layers to the next code."""
    actual, expected = [torch.tensor(output) for output in run(path, inputs)], _torch_run(part, inputs)
    assert len(actual) == len(expected)
    moved = [
        _torch_run(part, {name: noisy(x, 1e-3, seed) if x.dim() > 2 else x for name, x in inputs.items()})
        for seed in range(4)
    ]
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert one.shape == other.shape
        noise = max(error(each[i], other) for each in moved)
        assert error(one, other) < max(0.1, 1.5 * noise), f"output {i} of {part.name}, where noise moves {noise:.3f}"


def check_files(files: list[Path], run: Runner, trained: SAM2Base, parts: dict[str, ExportPart]) -> None:
    assert [file.stem for file in files] == list(parts)
    for file, part in zip(files, parts.values(), strict=True):
        _check(file, run, part, part.inputs)
    attention, decoder = parts["memory_attention"], parts["mask_decoder"]
    for frames, pointers in ((1, 1), (7, 16)):
        generator = torch.Generator().manual_seed(frames)
        inputs: dict[str, Any] = dict(attention.inputs)
        inputs["memory"] = torch.randn(frames, *inputs["memory"].shape[1:], generator=generator)
        inputs["age"] = torch.arange(frames)
        inputs["pointers"] = torch.randn(pointers, trained.hidden_dim, generator=generator)
        inputs["pointer_age"] = torch.arange(pointers) / 15
        _check(files[2], run, attention, inputs)
    inputs = dict(decoder.inputs)
    inputs["point_coords"] = torch.tensor([[[10.0, 20.0], [70.0, 80.0], [40.0, 40.0]]])
    inputs["point_labels"] = torch.tensor([[2, 3, 1]], dtype=torch.int32)
    for has_mask in (0.0, 1.0):
        inputs["has_mask"] = torch.tensor([has_mask])
        _check(files[1], run, decoder, inputs)


def check_quantized_layers(image_encoder: Path, trained: SAM2Base) -> None:
    """An ONNX file has as many quantized inputs as the model, and its weights as small integers."""
    onnx = pytest.importorskip("onnx")
    records = stage_of(trained).layers
    bits = min(record.bits for record in records)
    proto = onnx.load(str(image_encoder))
    onnx.checker.check_model(proto)
    kinds = [node.op_type for node in proto.graph.node]
    # SAM2's image path applies two convolutions of the decoder to the features as well.
    paths = ("image_encoder", "sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1")
    quantized = {(record.part, record.activation) for record in records if record.part in paths and record.activation}
    assert kinds.count("QuantizeLinear") == len(quantized)
    types = [tensor.data_type for tensor in proto.graph.initializer]
    layers = sum(record.part == "image_encoder" for record in records)
    assert types.count(onnx.TensorProto.INT4) + types.count(onnx.TensorProto.INT8) >= layers
    if bits == 2:
        assert types.count(onnx.TensorProto.INT4) > layers / 2
