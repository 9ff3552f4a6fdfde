"""Deployed models for other runtimes (ONNX, OpenVINO, AOTInductor), and a runner for what was exported."""

from .aoti import export_aoti
from .openvino import export_openvino
from .runner import ExportedSAM2
from .to_onnx import export_onnx

__all__ = ["ExportedSAM2", "export_aoti", "export_onnx", "export_openvino"]
