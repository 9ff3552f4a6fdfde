"""The trained embedded model, and a few images for it."""

from __future__ import annotations

from typing import Any

import pytest

from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.models.embedded import load_embedded


@pytest.fixture(scope="session")
def model() -> Any:
    return load_embedded()


@pytest.fixture(scope="session")
def images() -> list[Any]:
    return [generate_sequence("train", i, num_frames=1).frames[0] for i in range(2)]
