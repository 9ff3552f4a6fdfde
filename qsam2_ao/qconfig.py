"""Moved to ``qsam2_ao.recipe``; this module forwards to it."""

from __future__ import annotations

import warnings

from .recipe.presets import FIRST_AND_LAST_LAYERS as FIRST_AND_LAST_LAYERS
from .recipe.presets import PRESETS as PRESETS
from .recipe.presets import lsc_qconfig as lsc_qconfig
from .recipe.presets import preset_qconfig as preset_qconfig
from .recipe.presets import with_first_and_last as with_first_and_last
from .recipe.resolve import QConfigLike as QConfigLike
from .recipe.resolve import resolve_qconfig as resolve_qconfig

warnings.warn("qsam2_ao.qconfig has moved to qsam2_ao.recipe", DeprecationWarning, stacklevel=2)
