"""SAM2's own training class under DistributedDataParallel, with ranks that do different work."""

from __future__ import annotations

import copy
import os
import signal
from functools import partial

import pytest
import torch
from data_parallel import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qsam2_ao import load_embedded, prepare_qsam2
from qsam2_ao.quantizers.statistics import on_this_rank_alone, world_size
from qsam2_ao.recipe import fake_quantizers
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage, to_datapoint
from qsam2_ao.training.distillation import RECOMMENDED
from qsam2_ao.training.loop import read_checkpoint
from qsam2_ao.training.loop import train as train_model
from qsam2_ao.training.losses import SAM2Loss, prompted_forward
from qsam2_ao.training.qat import Rates, as_trainable, data_parallel, qat_optimizer, train_qat
from qsam2_ao.training.settings import TrainingSettings
from qsam2_ao.workflow import training
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


SETTINGS = TrainingSettings(2, lr=1e-3, batch_size=2, frames=2, objects=2, validate_every=1)


def train_together(rank):
    """Steps on two clips, by however many ranks there are: plain ones, and with all that a command has."""
    teacher, tuned = load_embedded(), load_embedded()
    with on_this_rank_alone():
        prepared = prepare_qsam2(teacher, "w4a8", calibration_data=procedural_images(1, 96), vrc=None, progress=False)
    with pytest.MonkeyPatch.context() as one_batch:
        one_batch.setattr(training, "HELD_OUT_BATCHES", 1)
        data = training_data("embedded", None, SETTINGS, teacher, seed=3)
    found = {}
    # Of a quantized model one step: from then on a last bit moves values from one code to the next.
    for name, model, steps in (("quantized", copy.deepcopy(prepared), 1), ("float", tuned, 2)):
        trainable = as_trainable(model)
        train_qat(
            data_parallel(trainable) if world_size() > 1 else trainable,
            steps=steps,
            batches=data.batches,
            # Plain steps: Adam makes as much of a gradient that is zero but for rounding as of any other.
            optimizer=torch.optim.SGD(trainable.parameters(), lr=1e-2),
            warmup=0,
            distill_from=teacher,
            distill=RECOMMENDED,
            progress=False,
        )
        found[name] = model.state_dict()
    result = train_as(SETTINGS, prepared, data, seed=3, distill_from=teacher, partwise=True)
    found["losses"], found["average"] = torch.tensor(result.losses), result.average
    found["held_out"] = torch.tensor([loss for _, loss in sorted(result.selected.judged.items())])
    return found


def check_together(first, second, alone):
    assert torch.equal(first["losses"], second["losses"])
    assert torch.equal(first["held_out"], second["held_out"])
    for part in ("quantized", "float", "average"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), (part, name)
    for part in ("quantized", "float"):
        for name, value in alone[part].items():
            torch.testing.assert_close(first[part][name], value, rtol=1e-4, atol=1e-6, msg=f"{part} {name}")
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-2, atol=0)
    torch.testing.assert_close(first["held_out"][0], alone["held_out"][0], rtol=1e-4, atol=0)


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does_with_the_whole_batch(tmp_path):
    check_together(*run_ranks(train_together, tmp_path, seconds=600), train_together(0))


def interrupt_one(rank, path):
    steps = []

    def on_step(result):
        steps.append(result.step)
        if rank == 1 and result.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train_model(
            DistributedDataParallel(nn.Linear(2, 1)),
            lambda first: [torch.ones(1, 2)] * 10,
            lambda output, batch: output.square().mean(),
            steps=10,
            checkpoint=path,
            on_step=on_step,
            progress=False,
        )
    return {"steps": torch.tensor(steps)}


@pytest.mark.slow
def test_ranks_stop_together_where_one_is_interrupted(tmp_path):
    path = tmp_path / "training.pt"
    first, second = run_ranks(partial(interrupt_one, path=path), tmp_path)
    assert first["steps"].tolist() == second["steps"].tolist() == [1, 2, 3]
    assert read_checkpoint(path)["step"] == 3


@pytest.mark.slow
def test_a_clip_on_one_rank_and_an_image_on_the_other(tmp_path):
    first, second = run_ranks(train, tmp_path, seconds=300)
    for part in ("ranges", "stats"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), (part, name)
    started = sum(bool(value[-1]) for value in first["stats"].values())
    assert started > 0.9 * len(first["stats"])
