"""A small video, and a clip of it on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from qsam2_ao.data.procedural import Sequence, generate_sequence


@pytest.fixture(scope="session")
def sequence() -> Sequence:
    return generate_sequence("test", 3, size=(72, 96), num_frames=3)


@pytest.fixture
def clip(tmp_path: Path, sequence: Sequence) -> Path:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number, frame in enumerate(sequence.frames):
        Image.fromarray(frame).save(folder / f"{number:05d}.png")
    return folder
