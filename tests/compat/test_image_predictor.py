from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor
from threads import at_once

from qsam2_ao.compat import adapt_predictors
from qsam2_ao.compat.image_predictor import any_input_size, eager_predictor, feature_sizes


@pytest.fixture(scope="module", autouse=True)
def _adapted() -> None:
    adapt_predictors()


def test_official_input_size_keeps_the_sizes_of_sam2() -> None:
    model = SimpleNamespace(image_size=1024, backbone_stride=16)
    untouched = SAM2ImagePredictor.__new__(SAM2ImagePredictor)
    SAM2ImagePredictor.__init__._qsam2_original(untouched, model)
    assert SAM2ImagePredictor(model)._bb_feat_sizes == untouched._bb_feat_sizes


@pytest.mark.parametrize(("size", "sides"), [(96, [24, 12, 6]), (256, [64, 32, 16])])
def test_other_input_sizes(size: int, sides: list[int]) -> None:
    model = SimpleNamespace(image_size=size, backbone_stride=16)
    assert feature_sizes(model) == [(side, side) for side in sides]
    assert SAM2ImagePredictor(model, mask_threshold=0.5)._bb_feat_sizes == feature_sizes(model)


@pytest.mark.parametrize("size", [96, 1024])
def test_transforms_as_they_are_written_compute_what_torchscript_does(size: int) -> None:
    model = SimpleNamespace(image_size=size, backbone_stride=16)
    scripted, eager = SAM2ImagePredictor(model), eager_predictor(model)
    assert vars(scripted).keys() == vars(eager).keys()
    assert eager._bb_feat_sizes == scripted._bb_feat_sizes
    assert vars(eager._transforms).keys() == vars(scripted._transforms).keys()
    assert not isinstance(eager._transforms.transforms, torch.jit.ScriptModule)
    picture = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    torch.testing.assert_close(eager._transforms(picture), scripted._transforms(picture), rtol=0, atol=0)
    assert torch.jit.script.__module__.startswith("torch"), "the module sees no difference"


def test_a_second_call_changes_nothing() -> None:
    before = SAM2ImagePredictor.__init__
    with any_input_size():
        pass
    assert SAM2ImagePredictor.__init__ is before


def test_threads_construct_theirs_at_once() -> None:
    model = SimpleNamespace(image_size=96, backbone_stride=16)
    predictors = at_once(*[lambda: [SAM2ImagePredictor(model) for _ in range(5)]] * 4)
    assert all(predictor.model is model for several in predictors for predictor in several)
