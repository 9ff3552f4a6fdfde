"""Moved to ``qsam2_ao.recipe.backend``; this module forwards to it."""

from __future__ import annotations

import warnings

from .recipe.backend import QAT_MODULES as QAT_MODULES
from .recipe.backend import QATConv2d as QATConv2d
from .recipe.backend import QATLinear as QATLinear
from .recipe.backend import qsam2_backend_config as qsam2_backend_config

warnings.warn("qsam2_ao.backend_config has moved to qsam2_ao.recipe.backend", DeprecationWarning, stacklevel=2)
