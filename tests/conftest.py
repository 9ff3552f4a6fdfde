"""What tests of several rooms need: a video, a picture of it, a small packed model with random weights."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_searches import make_searches_small

from qsam2_ao.data.procedural import Sequence, generate_sequence

#: Scripts that make what tests compare with; they are not imported to look for examples.
collect_ignore_glob = ["*make_*.py"]


@pytest.fixture(scope="module", autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    """So that a worker that had the largest models is not as large for the rest of the run."""
    yield
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(scope="session")
def sequence() -> Sequence:
    return generate_sequence("test", 0, num_frames=3)


@pytest.fixture
def picture(tmp_path: Path, sequence: Sequence) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(sequence.frames[0]).save(path)
    return path


@pytest.fixture
def small_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    make_searches_small(monkeypatch)


@pytest.fixture(scope="session")
def packed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded architecture with random weights, quantized to w4a8 without training."""
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    from qsam2_ao import convert_qsam2, save_qsam2
    from qsam2_ao.models.embedded import build_embedded

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(2)]
    path = tmp_path_factory.mktemp("packed") / "random-w4a8.safetensors"
    save_qsam2(convert_qsam2(build_embedded(SAM2VideoPredictor), "w4a8", images, vrc=None), path)
    return path
