from __future__ import annotations

from pathlib import Path

import pytest

from qsam2_ao import convert_qsam2, load_embedded, save_qsam2
from qsam2_ao.data.procedural import generate_sequence


@pytest.fixture(scope="session")
def trained_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with its trained weights at w4a8, ranges of real inputs."""
    path = tmp_path_factory.mktemp("export") / "embedded-w4a8.safetensors"
    photos = list(generate_sequence("train", 0, num_frames=4).frames)
    save_qsam2(convert_qsam2(load_embedded(), "w4a8", photos, progress=False), path)
    return path
