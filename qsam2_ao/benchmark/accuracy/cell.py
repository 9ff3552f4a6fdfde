"""Moved to :mod:`qsam2_ao.benchmark.accuracy.experiment`."""

import warnings

from .data import calibration_images
from .experiment import (
    QUICK,
    Budget,
    Experiments,
    Scores,
    deployed,
    prepare_method,
    score,
    train_method,
)

Cells = Experiments

__all__ = [
    "QUICK",
    "Budget",
    "Cells",
    "Scores",
    "calibration_images",
    "deployed",
    "prepare_method",
    "score",
    "train_method",
]

warnings.warn(
    "qsam2_ao.benchmark.accuracy.cell moved to qsam2_ao.benchmark.accuracy.experiment", DeprecationWarning, stacklevel=2
)
