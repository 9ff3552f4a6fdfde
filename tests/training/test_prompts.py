"""An object's prompts are the same in any batch, and the model draws by itself again afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training.model.sam2 import SAM2Train

from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.training.batches import RawBatch, to_datapoint
from qsam2_ao.training.clips import ClipBatches, Dealt, ProceduralClips
from qsam2_ao.training.losses import TRAIN_OVERRIDES
from qsam2_ao.training.prompts import prompts_by_object


@pytest.fixture(scope="module")
def model():
    built = build_embedded(SAM2Train).train()
    for name, value in TRAIN_OVERRIDES.items():
        setattr(built, name, value)
    built.prob_to_use_pt_input_for_train = 1.0
    return built


def points(model, raw: RawBatch, boxes: float, seed: int = 3):
    batch = to_datapoint(raw)
    model.rng = np.random.default_rng(seed)
    model.prob_to_use_box_input_for_train = boxes
    with prompts_by_object(model, batch):
        prompts = model.prepare_prompt_inputs({}, batch)["point_inputs_per_frame"][0]
    assert "prepare_prompt_inputs" not in vars(model)
    return prompts["point_coords"], prompts["point_labels"]


@pytest.mark.parametrize("boxes", [0.0, 1.0])
def test_half_a_batch_has_the_prompts_of_the_whole(model, boxes: float):
    source = ProceduralClips(96, seed=1)
    whole = ClipBatches(source, frames=2, dealt=Dealt(clips=4))
    halves = [ClipBatches(source, frames=2, dealt=Dealt(2, rank=rank, ranks=2)) for rank in range(2)]
    for step in range(4):
        coords, labels = points(model, whole[step], boxes)
        found = [points(model, half[step], boxes) for half in halves]
        assert torch.equal(torch.cat([part[0] for part in found]), coords)
        assert torch.equal(torch.cat([part[1] for part in found]), labels)
        assert len(coords) == len(whole[step].objects)
        assert not torch.equal(points(model, whole[step], boxes, seed=4)[0], coords)


def test_points_are_on_their_objects(model):
    raw = ClipBatches(ProceduralClips(96, seed=1), frames=2, dealt=Dealt(clips=3))[1]
    coords, labels = points(model, raw, boxes=0.0)
    masks = to_datapoint(raw).masks[0]
    assert (labels == 1).all()
    for mask, (x, y) in zip(masks, coords[:, 0].long().tolist(), strict=True):
        assert mask[y, x]
