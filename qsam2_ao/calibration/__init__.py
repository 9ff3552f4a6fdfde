"""Calibration from unlabelled images: variance-reduced weights (VRC) and exercising every region."""

from .calibrate import calibrate_qsam2
from .exercise import exercise
from .gram import VRCObserver
from .images import CalibrationData, CalibrationImages, load_images
from .report import LayerReport, VRCReport
from .vrc import calibrate_weight, solve_vrc

__all__ = [
    "CalibrationData",
    "CalibrationImages",
    "LayerReport",
    "VRCObserver",
    "VRCReport",
    "calibrate_qsam2",
    "calibrate_weight",
    "exercise",
    "load_images",
    "solve_vrc",
]
