"""Deployed models for other runtimes: ONNX and OpenVINO, with the learned ranges as quantize-dequantize pairs."""

from .openvino import export_openvino
from .to_onnx import export_onnx

__all__ = ["export_onnx", "export_openvino"]
