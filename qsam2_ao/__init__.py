"""qsam2_ao: Segment Anything Model 2, quantized to 2-8 bits and still running in SAM2's own predictors.

Example:
    >>> from qsam2_ao import convert_qsam2, load_qsam2, prepare_qsam2, save_qsam2
    >>> prepared = prepare_qsam2(model, "w4a8", calibration_data="photos/")  # then train it in any loop
    >>> save_qsam2(convert_qsam2(prepared), "w4a8.safetensors")
    >>> predictor = SAM2ImagePredictor(load_qsam2("w4a8.safetensors"))
"""

from . import compat as _compat

_compat.ensure_all()

from .calibration import VRCObserver, VRCReport, calibrate_qsam2, solve_vrc
from .calibration.equalize import equalize_qsam2
from .calibration.network import calibrate_network
from .checkpoint import load_qsam2, save_qsam2
from .convert import convert_qsam2
from .eager_qat import LSCActivationConfig, LSCQATConfig, LSCWeightConfig
from .errors import QSAM2Error
from .graph import REGIONS, trace_regions
from .lowering.compiled import compile_qsam2
from .lowering.targets import lower_float
from .models.config import rehouse
from .models.embedded import build_embedded, load_embedded
from .models.official import build_official
from .prepare import calibrate_activations, prepare_qsam2
from .pt2e import QSAM2Quantizer
from .qconfig import PRESETS, lsc_qconfig, preset_qconfig
from .quantizers import LSCFakeQuantize, calibrating, snap_weights
from .reporting.coverage import CoverageReport, coverage_report
from .reporting.speed import layer_times
from .tensors import PackedIntxTensor

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
    "trace_regions",
]
