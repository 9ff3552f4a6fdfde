from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from training.model.sam2 import SAM2Train

from qsam2_ao.models.embedded import build_embedded, load_embedded
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage
from qsam2_ao.training.distillation import Distillation, DistillationWeights
from qsam2_ao.training.losses import TRAIN_OVERRIDES, prompted_forward

EVERYTHING = DistillationWeights(features=1.0, masks=1.0, memory=1.0, labels=0.0)


@pytest.fixture(scope="module", params=[True, False], ids=["images", "clips"])
def batch(request):
    kind = BatchKind(2, 3, 2, images=request.param)
    return next(iter(ProceduralBatches((Stage(0, ((kind, 1.0),)),)).stream(1)(0)))


def student_of(model):
    student = load_embedded(SAM2Train, **TRAIN_OVERRIDES)
    student.rng = np.random.default_rng(0)
    return student.train()


def test_the_teacher_itself_is_at_no_distance(batch):
    teacher = load_embedded(SAM2VideoPredictor)
    distillation = Distillation(teacher, DistillationWeights(features=1.0, masks=0.0, memory=1.0, labels=0.0))
    torch.manual_seed(0)
    own, wanted = distillation.forward(student_of(teacher), batch)
    # The same prompts reach both: masks before any correction are equal, and so is what follows from them.
    for a, b in zip(own.logits, wanted.logits, strict=True):
        torch.testing.assert_close(a, b)
    assert float(distillation.loss((own, wanted), batch)) < 1e-6


def test_a_student_with_prompts_of_its_own_shares_them_with_the_teacher(batch):
    # A box asks for one mask and a click for three: where only one of the two got a box, nothing fits.
    settings = {**TRAIN_OVERRIDES, "prob_to_use_pt_input_for_train": 1.0}
    for odds in (0.0, 1.0):
        student = load_embedded(SAM2Train, **{**settings, "prob_to_use_box_input_for_train": odds}).train()
        distillation = Distillation(load_embedded(SAM2VideoPredictor), EVERYTHING)
        own, wanted = distillation.forward(student, batch)
        assert own.logits[0].shape == wanted.logits[0].shape
        assert torch.isfinite(distillation.loss((own, wanted), batch))


def test_prompts_go_on_as_without_a_teacher(batch):
    alone, taught = student_of(None), student_of(None)
    torch.manual_seed(0)
    plain = prompted_forward(alone, batch)
    torch.manual_seed(0)
    own, _ = Distillation(build_embedded(SAM2VideoPredictor), EVERYTHING).forward(taught, batch)
    for a, b in zip(plain, own.outputs, strict=True):
        torch.testing.assert_close(a["pred_masks"], b["pred_masks"])


@pytest.mark.slow
@pytest.mark.parametrize("term", ["features", "masks", "memory"])
def test_every_term_teaches(batch, term):
    weights = DistillationWeights(**{"features": 0.0, "labels": 0.0, term: 1.0})
    distillation = Distillation(load_embedded(SAM2VideoPredictor), weights)
    student = build_embedded(SAM2Train, seed=1, **TRAIN_OVERRIDES).train()
    student.rng = np.random.default_rng(0)
    torch.manual_seed(0)
    loss = distillation.loss(distillation.forward(student, batch), batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 0
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in student.image_encoder.parameters())


@pytest.mark.slow
def test_the_teacher_stays_as_it_is(batch):
    teacher = load_embedded(SAM2VideoPredictor)
    before = copy.deepcopy(teacher.state_dict())
    distillation = Distillation(teacher, EVERYTHING)
    distillation.forward(student_of(teacher), batch)
    assert not teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(module.training for name, module in distillation._teacher.model.named_modules() if name)
