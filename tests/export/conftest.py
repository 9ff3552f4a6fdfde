from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from shallow import SHALLOW
from torch import nn

from qsam2_ao import build_embedded, convert_qsam2, load_embedded, preset_qconfig, save_qsam2
from qsam2_ao.data.procedural import generate_sequence


def shallow_model() -> SAM2Base:
    """The embedded model with its trained weights, so that scores have no ties, and fewer blocks of each kind.

    It segments a little worse; exporting and compiling take as long as there are blocks.
    """
    kept = (0, 1, 3, 4, 6)  # of the image encoder: the first of each stage, and one of two with global attention
    model: Any = build_embedded(SAM2VideoPredictor, apply_postprocessing=True, **SHALLOW)
    deep: Any = load_embedded()
    blocks = deep.image_encoder.trunk.blocks
    deep.image_encoder.trunk.blocks = nn.ModuleList(blocks[i] for i in kept)
    weights = deep.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Files of presets."""

    @cache
    def of(preset: str, first_last_bits: int | None = None) -> Path:
        path = tmp_path_factory.mktemp("export") / f"shallow-{preset}.safetensors"
        recipe = preset_qconfig(preset, first_last_bits=first_last_bits)
        photos = list(generate_sequence("train", 0, num_frames=4).frames)
        save_qsam2(convert_qsam2(shallow_model(), recipe, photos, vrc=None, progress=False), path)
        return path

    return of


@pytest.fixture(scope="session")
def trained_file(trained: Callable[[str], Path]) -> Path:
    return trained("w4a8")
