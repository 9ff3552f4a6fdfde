"""The image encoder in OpenVINO and ONNX Runtime. They come with the optional dependencies ``benchmark``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...export.runtimes import needed, openvino_core
from ...files import atomic_write
from .case import Case
from .parts import Run

_package = partial(needed, extra="benchmark")


class _Features(nn.Module):
    """The encoder, returning tensors alone: other runtimes have no dicts."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(x)["backbone_fpn"])


def openvino(case: Case, precision: str, quantized: bool = False) -> Any:
    """OpenVINO with the latency hint; quantized by NNCF with its settings for transformers.

    Raises:
        QSAM2Error: The package is not installed.
    """
    _package("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": case.threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    path = openvino_file(case, quantized)
    request = openvino_core().compile_model(str(path), "CPU", settings).create_infer_request()
    x = _input(case).numpy()

    def part(name: str) -> Run:
        return lambda: request.infer({0: x})

    return part


def openvino_file(case: Case, quantized: bool = False) -> Path:
    """The encoder for OpenVINO; made where there is none yet."""
    return _openvino_int8(case) if quantized else _openvino_float(case)


def _openvino_float(case: Case) -> Path:
    ov = _package("openvino")
    path = case.files / f"{case.model}-{case.size}px.xml"
    if not path.exists():
        x = _input(case)
        with torch.no_grad():
            model = ov.convert_model(_Features(case.build().image_encoder), example_input=x, input=[tuple(x.shape)])
        ov.save_model(model, path, compress_to_fp16=False)
    return path


def _openvino_int8(case: Case) -> Path:
    ov, nncf = _package("openvino"), _package("nncf")
    path = case.files / f"{case.model}-{case.size}px-int8.xml"
    if not path.exists():
        data = nncf.Dataset([_input(case).numpy()])
        quantized = nncf.quantize(
            openvino_core().read_model(_openvino_float(case)),
            data,
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=1,
        )
        ov.save_model(quantized, path, compress_to_fp16=False)
    return path


def onnx_runtime(case: Case, quantized: bool = False) -> Any:
    """ONNX Runtime with all graph optimizations; quantized dynamically, its advice for transformers.

    Raises:
        QSAM2Error: The package is not installed.
    """
    ort = _package("onnxruntime")
    path = onnx_file(case, quantized)
    options = ort.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    x = {session.get_inputs()[0].name: _input(case).numpy()}

    def part(name: str) -> Run:
        return lambda: session.run(None, x)

    return part


def onnx_file(case: Case, quantized: bool = False) -> Path:
    """The encoder for ONNX Runtime; made where there is none yet."""
    return _onnx_int8(case) if quantized else _onnx_float(case)


def _onnx_float(case: Case) -> Path:
    _package("onnx")
    path = case.files / f"{case.model}-{case.size}px.onnx"
    if not path.exists():
        features = _Features(case.build().image_encoder).eval()
        with atomic_write(path) as temporary, torch.no_grad():
            torch.onnx.export(features, (_input(case),), str(temporary), opset_version=17, dynamo=False)
    return path


def _onnx_int8(case: Case) -> Path:
    quantization = _package("onnxruntime.quantization")
    path = case.files / f"{case.model}-{case.size}px-int8.onnx"
    if not path.exists():
        with atomic_write(path) as temporary:
            quantization.quantize_dynamic(
                _onnx_float(case), temporary, weight_type=quantization.QuantType.QInt8, op_types_to_quantize=["MatMul"]
            )
    return path


def _input(case: Case) -> Tensor:
    return torch.randn(1, 3, case.size, case.size, generator=torch.Generator().manual_seed(0))
