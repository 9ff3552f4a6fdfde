"""A model that tracks."""

from __future__ import annotations

from typing import Any

import pytest
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao.models.embedded import build_embedded


@pytest.fixture(scope="session")
def predictor() -> Any:
    """A video predictor with random weights."""
    return build_embedded(SAM2VideoPredictor)
