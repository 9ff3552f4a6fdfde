from __future__ import annotations

import pytest
import torch
from training.model.sam2 import SAM2Train

from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.training.losses import TRAIN_OVERRIDES
from qsam2_ao.training.validation import Score, _boundary, _iou, quick_score


def square(left, top, side, size=64):
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    mask[..., top : top + side, left : left + side] = True
    return mask


def test_perfect_empty_and_missed_masks():
    truth, empty = square(10, 10, 20), square(0, 0, 0)
    for score in (_iou, _boundary):
        assert score(truth, truth).item() == 1
        assert score(empty, empty).item() == 1
        assert score(empty, truth).item() == 0
        assert score(truth, empty).item() == 0


def test_known_overlap():
    assert _iou(square(0, 0, 10), square(5, 0, 10)).item() == pytest.approx(50 / 150)


def test_boundary_tolerates_a_pixel_but_not_four():
    truth = square(10, 10, 30)
    assert _boundary(square(11, 10, 30), truth).item() == 1
    assert _boundary(square(14, 14, 30), truth).item() < 0.3


def test_scores_are_repeatable_and_leave_the_model_alone():
    model = build_embedded(SAM2Train, **TRAIN_OVERRIDES).train()
    rng = model.rng
    first, second = (quick_score(model, videos=2, num_frames=4) for _ in range(2))
    assert first == second
    assert model.training
    assert model.rng is rng
    assert model.prob_to_use_pt_input_for_eval == 0
    assert 0 <= first.j <= 100


def test_score_reads_well():
    score = Score(j=80.0, f=90.0, box=70.0, click=60.0)
    assert score.jf == 85
    assert str(score) == "J&F 85.0 (J 80.0 F 90.0), box 70.0, click 60.0"
