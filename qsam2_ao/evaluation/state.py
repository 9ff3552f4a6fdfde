"""Moved to :mod:`qsam2_ao.predictors`."""

import warnings

from ..predictors import as_video_predictor, eval_mode, predictor_state, preprocess

__all__ = ["as_video_predictor", "eval_mode", "predictor_state", "preprocess"]

warnings.warn("qsam2_ao.evaluation.state moved to qsam2_ao.predictors", DeprecationWarning, stacklevel=2)
