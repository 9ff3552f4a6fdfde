from __future__ import annotations

import pytest
import torch
from training.model.sam2 import SAM2Train

from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage, to_datapoint
from qsam2_ao.training.loop import train
from qsam2_ao.training.pretraining import DensePretraining, dense_loss


def batch_of(videos=2):
    return to_datapoint(ProceduralBatches((Stage(0, ((BatchKind(videos, 2, 3), 1.0),)),))[0])


@pytest.mark.slow
def test_trains_the_models_own_encoder():
    model, batch = build_embedded(SAM2Train), batch_of()
    before = model.image_encoder.trunk.patch_embed.proj.weight.detach().clone()
    pretraining = DensePretraining(model)
    maps = pretraining(batch)
    assert maps.shape == (4, 20, 24, 24)
    result = train(pretraining, lambda first: [batch] * 12, dense_loss, steps=12, lr=2e-3, progress=False)
    assert result.losses[-1] < 0.8 * result.losses[0]
    assert not torch.equal(model.image_encoder.trunk.patch_embed.proj.weight, before)


def perfect_maps(batch):
    """The maps that the loss asks for, made from the masks: [B * T, 4 + 16, 24, 24]."""
    maps = torch.zeros(2, batch.num_videos, 20, 24, 24)
    masks = torch.nn.functional.interpolate(batch.masks.float(), size=(24, 24), mode="area")
    edges = torch.nn.functional.max_pool2d(batch.masks.float(), 3, 1, 1)
    edges = edges + torch.nn.functional.max_pool2d(-batch.masks.float(), 3, 1, 1)
    edges = torch.nn.functional.adaptive_max_pool2d(edges, (24, 24))
    y, x = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 24), indexing="ij")
    for t in range(2):
        for o, video in enumerate(batch.obj_to_frame_idx[0, :, 1].tolist()):
            inside = masks[t, o] > 0.5
            maps[t, video, 0] += masks[t, o]
            maps[t, video, 1] += edges[t, o]
            maps[t, video, 2][inside] = 4 * (x[inside].mean() - x[inside])
            maps[t, video, 3][inside] = 4 * (y[inside].mean() - y[inside])
            maps[t, video, 4 + o][inside] = 1.0
    maps[:, :, :2] = torch.logit(maps[:, :, :2].clamp(1e-4, 1 - 1e-4))
    return maps.transpose(0, 1).flatten(0, 1)


def test_each_term_asks_for_the_truth():
    batch = batch_of()
    maps = perfect_maps(batch)
    best = dense_loss(maps, batch)
    for channels in (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4), slice(4, 20)):
        worse = maps.clone()
        worse[:, channels] = worse[:, channels].flip(-1)
        assert dense_loss(worse, batch) > best


@pytest.mark.slow
def test_objects_that_are_away_do_not_matter():
    batch = batch_of()
    maps = perfect_maps(batch)
    batch.masks = torch.zeros_like(batch.masks)
    maps.requires_grad_()
    loss = dense_loss(maps, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(maps.grad).all()
