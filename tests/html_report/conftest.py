"""The embedded model and what comes of it in 4 bits."""

from __future__ import annotations

import numpy as np
import pytest
from sam2.modeling.sam2_base import SAM2Base

from qsam2_ao import convert_qsam2, load_embedded
from qsam2_ao.workflow.data import procedural_images


@pytest.fixture(scope="session")
def images() -> list[np.ndarray]:
    return procedural_images(2, 96)


@pytest.fixture(scope="session")
def reference() -> SAM2Base:
    return load_embedded()


@pytest.fixture(scope="session")
def quantized(reference: SAM2Base, images: list[np.ndarray]) -> SAM2Base:
    return convert_qsam2(reference, "w4a8", images, vrc=None, progress=False)
