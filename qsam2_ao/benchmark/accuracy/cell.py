"""Moved to :mod:`qsam2_ao.benchmark.accuracy.experiment`."""

import warnings

from .experiment import (
    IMAGE_PROMPTS,
    QUICK,
    Budget,
    Experiments,
    Scores,
    calibration_images,
    deployed,
    prepare_method,
    score,
    train_method,
)

Cells = Experiments

__all__ = [
    "IMAGE_PROMPTS",
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
