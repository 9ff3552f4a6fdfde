"""Few ranges and lambdas are tried, and few clips judge: for tests of what comes of it, not of how good it is."""

from __future__ import annotations

import pytest

_SMALL: dict[str, object] = {
    "qsam2_ao.calibration.vrc.AUTO_DAMPINGS": (1e-2,),
    "qsam2_ao.calibration.rounding._MULTIPLES": (1.0, 0.9),
    "qsam2_ao.quantizers.alpha_search._COARSE": 8,
    "qsam2_ao.quantizers.alpha_search._REFINEMENTS": 0,
    "qsam2_ao.workflow.training.HELD_OUT_BATCHES": 1,
    "qsam2_ao.workflow.training._PROCEDURAL_CLIPS": 1,
}


def make_searches_small(patch: pytest.MonkeyPatch) -> None:
    """Until ``patch`` is undone."""
    for name, value in _SMALL.items():
        patch.setattr(name, value)
