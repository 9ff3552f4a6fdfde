from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from qsam2_ao import convert_qsam2, load_embedded, preset_qconfig, save_qsam2
from qsam2_ao.data.procedural import generate_sequence


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Files of presets: the embedded model with its trained weights, so that scores have no ties."""

    @cache
    def of(preset: str, first_last_bits: int | None = None) -> Path:
        path = tmp_path_factory.mktemp("export") / f"embedded-{preset}.safetensors"
        recipe = preset_qconfig(preset, first_last_bits=first_last_bits)
        photos = list(generate_sequence("train", 0, num_frames=4).frames)
        save_qsam2(convert_qsam2(load_embedded(), recipe, photos, vrc=None, progress=False), path)
        return path

    return of


@pytest.fixture(scope="session")
def trained_file(trained: Callable[[str], Path]) -> Path:
    return trained("w4a8")
