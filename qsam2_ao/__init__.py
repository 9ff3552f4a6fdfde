"""qsam2_ao: Segment Anything Model 2, quantized to 2-8 bits and still running in SAM2's own predictors.

Example:
    >>> from qsam2_ao import convert_qsam2, load_qsam2, prepare_qsam2, save_qsam2
    >>> prepared = prepare_qsam2(model, "w4a8", calibration_data="photos/")  # then train it in any loop
    >>> save_qsam2(convert_qsam2(prepared), "w4a8.safetensors")
    >>> predictor = SAM2ImagePredictor(load_qsam2("w4a8.safetensors"))
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any

from .compat import arrange_repairs as _arrange_repairs
from .reporting.notebook import show_models_in_notebooks as _show_models_in_notebooks

if TYPE_CHECKING:
    from .calibration import VRCObserver, VRCReport, calibrate_qsam2, solve_vrc
    from .calibration.equalize import equalize_qsam2
    from .calibration.network import calibrate_network
    from .checkpoint import load_qsam2, save_qsam2
    from .convert import convert_qsam2
    from .deploy.compiled import compile_qsam2
    from .deploy.kernels.attention import use_int8_scores
    from .deploy.kernels.linear import use_int8_weights
    from .deploy.memories import use_compact_memories
    from .deploy.packed import PackedIntxTensor
    from .deploy.targets import lower_float
    from .deploy.transformers import to_transformers
    from .eager_qat import LSCActivationConfig, LSCQATConfig, LSCWeightConfig
    from .errors import QSAM2Error
    from .graph import REGIONS, trace_regions
    from .models.config import as_class, rehouse
    from .models.embedded import build_embedded, load_embedded
    from .models.official import build_official
    from .prepare import calibrate_activations, prepare_qsam2
    from .pt2e import QSAM2Quantizer
    from .quantizers import LSCFakeQuantize, calibrating, snap_weights
    from .recipe import PRESETS, lsc_qconfig, preset_qconfig
    from .reporting.coverage import CoverageReport, coverage_report
    from .reporting.speed import layer_times

__all__ = [
    "PRESETS",
    "REGIONS",
    "CoverageReport",
    "LSCActivationConfig",
    "LSCFakeQuantize",
    "LSCQATConfig",
    "LSCWeightConfig",
    "PackedIntxTensor",
    "QSAM2Error",
    "QSAM2Quantizer",
    "VRCObserver",
    "VRCReport",
    "as_class",
    "build_embedded",
    "build_official",
    "calibrate_activations",
    "calibrate_network",
    "calibrate_qsam2",
    "calibrating",
    "compile_qsam2",
    "convert_qsam2",
    "coverage_report",
    "equalize_qsam2",
    "layer_times",
    "load_embedded",
    "load_qsam2",
    "lower_float",
    "lsc_qconfig",
    "prepare_qsam2",
    "preset_qconfig",
    "rehouse",
    "save_qsam2",
    "snap_weights",
    "solve_vrc",
    "to_transformers",
    "trace_regions",
    "use_compact_memories",
    "use_int8_scores",
    "use_int8_weights",
]

_HOMES = {
    "CoverageReport": "reporting.coverage",
    "LSCActivationConfig": "eager_qat",
    "LSCFakeQuantize": "quantizers",
    "LSCQATConfig": "eager_qat",
    "LSCWeightConfig": "eager_qat",
    "PRESETS": "recipe",
    "PackedIntxTensor": "deploy.packed",
    "QSAM2Error": "errors",
    "QSAM2Quantizer": "pt2e",
    "REGIONS": "graph",
    "VRCObserver": "calibration",
    "VRCReport": "calibration",
    "as_class": "models.config",
    "build_embedded": "models.embedded",
    "build_official": "models.official",
    "calibrate_activations": "prepare",
    "calibrate_network": "calibration.network",
    "calibrate_qsam2": "calibration",
    "calibrating": "quantizers",
    "compile_qsam2": "deploy.compiled",
    "convert_qsam2": "convert",
    "coverage_report": "reporting.coverage",
    "equalize_qsam2": "calibration.equalize",
    "layer_times": "reporting.speed",
    "load_embedded": "models.embedded",
    "load_qsam2": "checkpoint",
    "lower_float": "deploy.targets",
    "lsc_qconfig": "recipe",
    "prepare_qsam2": "prepare",
    "preset_qconfig": "recipe",
    "rehouse": "models.config",
    "save_qsam2": "checkpoint",
    "snap_weights": "quantizers",
    "solve_vrc": "calibration",
    "to_transformers": "deploy.transformers",
    "trace_regions": "graph",
    "use_compact_memories": "deploy.memories",
    "use_int8_scores": "deploy.kernels.attention",
    "use_int8_weights": "deploy.kernels.linear",
}
"""Where each public name is; a module is imported when one of its names is first asked for."""

_FIRST_USE = threading.RLock()
"""Modules of torchao import each other in circles, which threads that start in different places cannot do at once."""

_arrange_repairs()
_show_models_in_notebooks()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        with _FIRST_USE:
            value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return importlib.import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
