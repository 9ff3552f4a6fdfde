"""The image encoder in OpenVINO and ONNX Runtime. They come with the optional dependencies ``benchmark``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ...export.runtimes import openvino_core
from ...files import atomic_write
from ...optional import needed
from .parts import Run
from .workload import InferenceWorkload


class _Features(nn.Module):
    """The encoder, returning tensors alone: other runtimes have no dicts."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(x)["backbone_fpn"])


def openvino(workload: InferenceWorkload, precision: str, quantized: bool = False) -> Callable[[str], Run]:
    """OpenVINO with the latency hint; quantized by NNCF with its settings for transformers.

    Raises:
        QSAM2Error: The package is not installed.
    """
    needed("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": workload.threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    path = openvino_file(workload, quantized)
    request = openvino_core().compile_model(str(path), "CPU", settings).create_infer_request()
    x = _input(workload).numpy()

    def part(name: str) -> Run:
        return lambda: request.infer({0: x})

    return part


def openvino_file(workload: InferenceWorkload, quantized: bool = False) -> Path:
    """The encoder for OpenVINO; made where there is none yet."""
    return _openvino_int8(workload) if quantized else _openvino_float(workload)


def _openvino_float(workload: InferenceWorkload) -> Path:
    ov = needed("openvino")
    path = workload.files / f"{workload.model}-{workload.size}px.xml"
    if not path.exists():
        x = _input(workload)
        with torch.no_grad():
            model = ov.convert_model(_Features(workload.build().image_encoder), example_input=x, input=[tuple(x.shape)])
        ov.save_model(model, path, compress_to_fp16=False)
    return path


def _openvino_int8(workload: InferenceWorkload) -> Path:
    ov, nncf = needed("openvino"), needed("nncf")
    path = workload.files / f"{workload.model}-{workload.size}px-int8.xml"
    if not path.exists():
        data = nncf.Dataset([_input(workload).numpy()])
        quantized = nncf.quantize(
            openvino_core().read_model(_openvino_float(workload)),
            data,
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=1,
        )
        ov.save_model(quantized, path, compress_to_fp16=False)
    return path


def onnx_runtime(workload: InferenceWorkload, quantized: bool = False) -> Callable[[str], Run]:
    """ONNX Runtime with all graph optimizations; quantized dynamically, its advice for transformers.

    Raises:
        QSAM2Error: The package is not installed.
    """
    ort = needed("onnxruntime")
    path = onnx_file(workload, quantized)
    options = ort.SessionOptions()
    options.intra_op_num_threads = workload.threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    x = {session.get_inputs()[0].name: _input(workload).numpy()}

    def part(name: str) -> Run:
        return lambda: session.run(None, x)

    return part


def onnx_file(workload: InferenceWorkload, quantized: bool = False) -> Path:
    """The encoder for ONNX Runtime; made where there is none yet."""
    return _onnx_int8(workload) if quantized else _onnx_float(workload)


def _onnx_float(workload: InferenceWorkload) -> Path:
    needed("onnx")
    path = workload.files / f"{workload.model}-{workload.size}px.onnx"
    if not path.exists():
        features = _Features(workload.build().image_encoder).eval()
        with atomic_write(path) as temporary, torch.no_grad():
            torch.onnx.export(features, (_input(workload),), str(temporary), opset_version=17, dynamo=False)
    return path


def _onnx_int8(workload: InferenceWorkload) -> Path:
    quantization = needed("onnxruntime.quantization")
    path = workload.files / f"{workload.model}-{workload.size}px-int8.onnx"
    if not path.exists():
        with atomic_write(path) as temporary:
            quantization.quantize_dynamic(
                _onnx_float(workload),
                temporary,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=["MatMul"],
            )
    return path


def _input(workload: InferenceWorkload) -> Tensor:
    return torch.randn(1, 3, workload.size, workload.size, generator=torch.Generator().manual_seed(0))
