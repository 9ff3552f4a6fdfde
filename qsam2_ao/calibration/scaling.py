"""Moved to ``qsam2_ao.calibration.scale_groups``; this module forwards to it."""

from __future__ import annotations

import warnings

from .scale_groups import ScaleGroup as ScaleGroup
from .scale_groups import rescale as rescale
from .scale_groups import scale_groups as scale_groups

warnings.warn(
    "qsam2_ao.calibration.scaling has moved to qsam2_ao.calibration.scale_groups", DeprecationWarning, stacklevel=2
)
