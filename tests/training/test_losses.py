from __future__ import annotations

import pytest
import torch
from training.model.sam2 import SAM2Train

from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage, to_datapoint
from qsam2_ao.training.loop import train
from qsam2_ao.training.losses import TRAIN_OVERRIDES, SAM2Loss, prompted_forward


def batch_of(kind, seed=0):
    return to_datapoint(ProceduralBatches((Stage(0, ((kind, 1.0),)),), seed=seed)[0])


@pytest.fixture(scope="module")
def clip():
    return batch_of(BatchKind(videos=1, frames=3, objects=2))


@pytest.mark.slow
def test_real_steps_lower_the_loss(clip):
    model = build_embedded(SAM2Train, **TRAIN_OVERRIDES)
    result = train(
        model,
        lambda first: [clip] * (12 - first),
        SAM2Loss(),
        steps=12,
        lr=1e-3,
        forward=prompted_forward,
        progress=False,
    )
    assert sum(result.losses[-3:]) < 0.8 * sum(result.losses[:3])


def test_loss_is_sam2s_own_per_frame(clip):
    model = build_embedded(SAM2Train, **TRAIN_OVERRIDES)
    outputs = prompted_forward(model, clip)
    own = SAM2Loss()
    parts = own.criterion(outputs, clip.masks)
    total = 20 * parts["loss_mask"] + parts["loss_dice"] + parts["loss_iou"] + parts["loss_class"]
    assert own(outputs, clip).item() == pytest.approx(total.item() / 3, rel=1e-5)


def test_images_are_always_prompted_by_points():
    images = batch_of(BatchKind(videos=1, frames=2, objects=2, images=True))
    model = build_embedded(SAM2Train, **{**TRAIN_OVERRIDES, "prob_to_use_pt_input_for_train": 0.0}).train()
    outputs = prompted_forward(model, images)
    # The first prompt and one correction; a mask prompt would have none.
    assert len(outputs[0]["multistep_point_inputs"]) == 2
    assert outputs[0]["multistep_point_inputs"][0] is not None
    assert model.prob_to_use_pt_input_for_train == 0.0


def test_clips_keep_the_models_settings(clip):
    model = build_embedded(SAM2Train, **{**TRAIN_OVERRIDES, "prob_to_use_pt_input_for_train": 0.0}).train()
    outputs = prompted_forward(model, clip)
    assert [output["multistep_point_inputs"] for output in outputs] == [[None]] * 3


@pytest.mark.slow
def test_settings_are_restored_after_an_error():
    model = build_embedded(SAM2Train, **TRAIN_OVERRIDES).train()
    images = batch_of(BatchKind(videos=1, frames=1, objects=1, images=True))
    images.masks = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    with pytest.raises((RuntimeError, AssertionError)):
        prompted_forward(model, images)
    assert model.prob_to_use_pt_input_for_train == TRAIN_OVERRIDES["prob_to_use_pt_input_for_train"]
