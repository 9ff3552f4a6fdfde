"""Frozen regions: parameters and ranges hold still, the others learn, and everything can learn again afterwards."""

from __future__ import annotations

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao import prepare_qsam2
from qsam2_ao.errors import QConfigError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage
from qsam2_ao.training.freezing import frozen
from qsam2_ao.training.qat import train_qat

SMALL = ProceduralBatches((Stage(0, ((BatchKind(1, 2, 1), 1.0),)),))


@pytest.mark.slow
def test_a_frozen_region_stays_and_the_others_move():
    prepared = prepare_qsam2(build_embedded(SAM2VideoPredictor), "w4a8", vrc=None, progress=False)
    train_qat(prepared, steps=1, batches=SMALL.stream(1), progress=False)  # starts the ranges of the inputs
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    with frozen(prepared, ("image_encoder", "mask_decoder")):
        train_qat(prepared, steps=2, batches=SMALL.stream(2), progress=False)
    after = prepared.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if name.startswith(("image_encoder", "sam_mask_decoder"))]
    assert any(name.startswith("memory_attention") and "log_alpha" in name for name in changed)
    assert all(parameter.requires_grad for parameter in prepared.parameters())
    assert bool(after[next(name for name in after if name.endswith("observer_enabled"))])


def test_an_unknown_region_is_named():
    with pytest.raises(QConfigError, match="image_encoder"), frozen(build_embedded(), ("image_encodr",)):
        pass
