"""SAM2's own training class under DistributedDataParallel, with ranks that do different work."""

from __future__ import annotations

import pytest
import torch
from data_parallel import run_ranks
from torch.nn.parallel import DistributedDataParallel

from qsam2_ao import load_embedded, prepare_qsam2
from qsam2_ao.quantizers.statistics import on_this_rank_alone
from qsam2_ao.recipe import fake_quantizers
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage, to_datapoint
from qsam2_ao.training.distillation import RECOMMENDED
from qsam2_ao.training.losses import SAM2Loss, prompted_forward
from qsam2_ao.training.qat import Rates, as_trainable, qat_optimizer
from qsam2_ao.training.settings import TrainingSettings
from qsam2_ao.workflow.data import procedural_images
from qsam2_ao.workflow.training import train_as, training_data


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


SETTINGS = TrainingSettings(2, lr=1e-3, batch_size=4, frames=3, validate_every=2)


def train_together(rank):
    """Steps on four clips, by however many ranks there are."""
    model = load_embedded()
    with on_this_rank_alone():
        prepared = prepare_qsam2(model, "w4a8", calibration_data=procedural_images(2, 96), vrc=None, progress=False)
    data = training_data("embedded", None, SETTINGS, model, seed=3)
    result = train_as(SETTINGS, prepared, data, seed=3, distill_from=model, distill=RECOMMENDED)
    return {
        "state": result.average,  # whatever the held-out batches chose
        "losses": torch.tensor(result.losses),
        "held_out": torch.tensor([result.selected.losses[step] for step in (0, 2)]),
    }


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does_with_the_whole_batch(tmp_path):
    first, second = run_ranks(train_together, tmp_path, seconds=300)
    alone = train_together(0)
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first["held_out"], alone["held_out"], rtol=1e-4, atol=1e-4)
    for name, value in alone["state"].items():
        torch.testing.assert_close(first["state"][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_a_clip_on_one_rank_and_an_image_on_the_other(tmp_path):
    first, second = run_ranks(train, tmp_path, seconds=300)
    for part in ("ranges", "stats"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), (part, name)
    started = sum(bool(value[-1]) for value in first["stats"].values())
    assert started > 0.9 * len(first["stats"])
