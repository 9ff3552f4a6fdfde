from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sam2 import sam2_video_predictor
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from threads import at_once
from torch import nn
from training.model.sam2 import SAM2Train

from qsam2_ao.errors import DataError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.predictors import (
    as_video_predictor,
    eval_mode,
    image_predictor,
    predictor_state,
    preprocess,
    without_hole_filling,
)

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 60, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def predictor() -> Any:
    """A video predictor with random weights."""
    return build_embedded(SAM2VideoPredictor, apply_postprocessing=True)


def test_equals_the_state_of_a_folder(predictor: Any, tmp_path: Path) -> None:
    for t, frame in enumerate(FRAMES):
        # sam2 looks at the ending, Pillow at the content: lossless frames.
        Image.fromarray(frame).save(tmp_path / f"{t:05d}.jpg", format="PNG")
    from_folder = predictor.init_state(str(tmp_path))
    loader = sam2_video_predictor.load_video_frames
    from_memory = predictor_state(predictor, FRAMES)
    assert sam2_video_predictor.load_video_frames is loader
    assert torch.equal(from_memory["images"], from_folder["images"])
    assert from_memory.keys() == from_folder.keys()
    for key in ("num_frames", "video_height", "video_width", "device", "storage_device"):
        assert from_memory[key] == from_folder[key]


def test_threads_start_their_own_videos(predictor: Any, tmp_path: Path) -> None:
    for t in range(5):
        Image.fromarray(FRAMES[0]).save(tmp_path / f"{t:05d}.jpg")
    other = build_embedded(SAM2VideoPredictor)

    def pictures(model: Any, frames: Any) -> set[bytes]:
        # Bytes: a float32 sum depends on how many threads torch uses for it, which differs between Python's threads.
        return {predictor_state(model, frames)["images"].numpy().tobytes() for _ in range(15)}

    def of_the_folder() -> set[int]:
        return {other.init_state(str(tmp_path))["num_frames"] for _ in range(5)}

    alone = [pictures(predictor, FRAMES), pictures(predictor, FRAMES[:2]), {5}]
    assert [len(found) for found in alone] == [1, 1, 1]
    before = sam2_video_predictor.load_video_frames, sam2_video_predictor.tqdm
    found = at_once(partial(pictures, predictor, FRAMES), partial(pictures, other, FRAMES[:2]), of_the_folder)
    assert found == alone
    assert (sam2_video_predictor.load_video_frames, sam2_video_predictor.tqdm) == before


def test_prints_nothing(predictor: Any, capsys: pytest.CaptureFixture[str]) -> None:
    predictor_state(predictor, FRAMES)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "at least one frame"),
        ([FRAMES[0], FRAMES[1][:50]], r"frame 1 is uint8 \[50, 80, 3\]"),
        (FRAMES.astype(np.float32), "frame 0 is float32"),
        (FRAMES[..., 0], "frame 0 is uint8"),
    ],
)
def test_unusable_frames_are_named(frames: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        preprocess(frames, 96)


def test_eval_mode_restores_each_module() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    model[1].eval()
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False, False]
    with pytest.raises(KeyError), eval_mode(model):
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False, False]


def test_threads_that_evaluate_one_model_leave_its_modes() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    model[1].eval()

    def evaluate() -> None:
        for _ in range(100):
            with eval_mode(model):
                assert not any(module.training for module in model.modules())

    at_once(evaluate, evaluate, evaluate)
    assert [module.training for module in model.modules()] == [True, True, False, False]


@pytest.mark.parametrize("model_class", [SAM2Base, SAM2Train])
def test_other_classes_become_predictors_that_share_the_parts(model_class: type[SAM2Base]) -> None:
    model = build_embedded(model_class)
    moved = as_video_predictor(model)
    assert moved.image_encoder is model.image_encoder
    assert as_video_predictor(moved) is moved


def test_the_image_predictor_takes_the_models_input_size(predictor: Any) -> None:
    found = image_predictor(predictor)
    assert found.model is predictor
    assert found._bb_feat_sizes == [(24, 24), (12, 12), (6, 6)]


def test_the_old_module_forwards_and_warns() -> None:
    sys.modules.pop("qsam2_ao.evaluation.state", None)
    with pytest.warns(DeprecationWarning, match=r"moved to qsam2_ao\.predictors"):
        state = importlib.import_module("qsam2_ao.evaluation.state")
    assert state.predictor_state is predictor_state


def test_holes_are_left_only_where_nothing_could_fill_them(capsys: pytest.CaptureFixture[str]) -> None:
    model = build_embedded(SAM2VideoPredictor, fill_hole_area=8)
    try:
        from sam2 import _C  # noqa: F401
    except ImportError:
        assert without_hole_filling(model).fill_hole_area == 0
        assert "small holes" in capsys.readouterr().err
    else:
        assert without_hole_filling(model).fill_hole_area == 8
