"""SAM2's own training class under DistributedDataParallel, with ranks that do different work."""

from __future__ import annotations

import pytest
import torch
from data_parallel import run_ranks
from torch.nn.parallel import DistributedDataParallel

from qsam2_ao import load_embedded, prepare_qsam2
from qsam2_ao.recipe import fake_quantizers
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage, to_datapoint
from qsam2_ao.training.losses import SAM2Loss, prompted_forward
from qsam2_ao.training.qat import Rates, as_trainable, qat_optimizer


def train(rank):
    kind = BatchKind(1, 3, 2) if rank == 0 else BatchKind(1, 1, 1, images=True)
    batches = ProceduralBatches((Stage(0, ((kind, 1.0),)),), size=(96, 96), seed=rank)
    prepared = prepare_qsam2(load_embedded(), "w2a8", vrc=None, progress=False)  # ranges start from the first batches
    torch.manual_seed(rank)
    model = DistributedDataParallel(as_trainable(prepared).train(), find_unused_parameters=True)
    optimizer = qat_optimizer(model, Rates(1e-4))
    for step in range(2):
        optimizer.zero_grad()
        batch = to_datapoint(batches[step])
        SAM2Loss()(prompted_forward(model, batch), batch).backward()
        optimizer.step()
    ranges = {name: torch.cat([q.log_alpha.detach(), q.alpha_bar]) for name, q in fake_quantizers(model.module)}
    stats = {
        name: torch.cat([q.mean, q.std, q.low, q.high, q.initialized])
        for name, q in fake_quantizers(model.module)
        if not q.is_weight
    }
    return {"ranges": ranges, "stats": stats}


@pytest.mark.slow
def test_a_clip_on_one_rank_and_an_image_on_the_other(tmp_path):
    first, second = run_ranks(train, tmp_path, seconds=300)
    for part in ("ranges", "stats"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), (part, name)
    started = sum(bool(value[-1]) for value in first["stats"].values())
    assert started > 0.9 * len(first["stats"])
