from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from training.model.sam2 import SAM2Train

from qsam2_ao import prepare_qsam2
from qsam2_ao.errors import QConfigError
from qsam2_ao.graph import REGIONS
from qsam2_ao.models.embedded import load_embedded
from qsam2_ao.ranks import bare
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage
from qsam2_ao.training.distillation import DistillationWeights
from qsam2_ao.training.freezing import frozen
from qsam2_ao.training.losses import TRAIN_OVERRIDES
from qsam2_ao.training.partwise import PartwiseDistillation
from qsam2_ao.training.qat import as_trainable, data_parallel, train_qat

OF_IMAGES = {
    "image_encoder",
    "sam_mask_decoder",
    "sam_mask_decoder.conv_s0",
    "sam_mask_decoder.conv_s1",
    "obj_ptr_proj",
    "memory_encoder",
}
OF_CLIPS = OF_IMAGES | {"memory_attention", "obj_ptr_tpos_proj"}


def batch_of(images: bool):
    kind = BatchKind(1, 3, 2, images=images)
    return next(iter(ProceduralBatches((Stage(0, ((kind, 1.0),)),)).stream(1)(0)))


@pytest.fixture(scope="module")
def clip():
    return batch_of(images=False)


@pytest.fixture(scope="module")
def float_model():
    return load_embedded(SAM2VideoPredictor)


@pytest.fixture(scope="module")
def started(float_model, clip):
    return prepare_qsam2(float_model, "w2a8", calibration_data=[clip], progress=False)


@pytest.fixture
def prepared(started):
    return copy.deepcopy(started)


def parts_with_gradients(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}


@pytest.mark.parametrize("images", [True, False], ids=["images", "clips"])
def test_the_float_model_is_at_no_distance_from_itself(float_model, images):
    student = load_embedded(SAM2Train, **TRAIN_OVERRIDES).train()
    distillation = PartwiseDistillation(float_model)
    batch = batch_of(images)
    distances = distillation.forward(student, batch)
    assert set(distances) == (OF_IMAGES if images else OF_CLIPS)
    assert max(float(value.detach()) for value in distances.values()) < 1e-6
    assert float(distillation.loss(distances, batch).detach()) < 1e-5
    assert set(distillation.terms) == {f"distance_{name}" for name in distances}


@pytest.mark.slow
def test_a_distance_teaches_its_own_part_alone(float_model, prepared, clip):
    student = as_trainable(prepared).train()
    distillation = PartwiseDistillation(float_model)
    for part in OF_CLIPS:
        student.zero_grad(set_to_none=True)
        distances = distillation.forward(student, clip)
        assert float(distances[part].detach()) > 0
        distances[part].backward()
        taught = parts_with_gradients(student)
        assert taught
        assert all(name.startswith(part) for name in taught)


@pytest.mark.slow
def test_the_distance_of_a_part_is_that_of_its_answers(float_model, prepared, clip):
    """Against the definition: the encoder's squared error over the variance of what the float one answers."""
    student = as_trainable(prepared).eval()
    student.training = True
    found = PartwiseDistillation(float_model).forward(student, clip)["image_encoder"]
    with torch.no_grad():
        own, wanted = (m.image_encoder(clip.flat_img_batch) for m in (prepared.eval(), float_model))
    answers = [*zip(own["backbone_fpn"], wanted["backbone_fpn"], strict=True)]
    answers.append((own["vision_features"], wanted["vision_features"]))
    terms = [(a.double() - b.double()).square().mean() / b.double().var(correction=0) for a, b in answers]
    assert float(found.detach()) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-4)


@pytest.mark.slow
def test_every_part_comes_nearer(float_model, prepared, clip):
    before = copy.deepcopy(float_model.state_dict())

    def distances() -> dict[str, float]:
        student = as_trainable(copy.deepcopy(prepared)).eval()
        student.training = True
        with torch.no_grad():
            return {k: float(v) for k, v in PartwiseDistillation(float_model).forward(student, clip).items()}

    start = distances()
    train_qat(prepared, steps=12, lr=5e-4, batches=lambda first: [clip] * 12, distill_from=float_model, partwise=True)
    end = distances()
    assert sum(end.values()) < 0.9 * sum(start.values())
    assert end["image_encoder"] < start["image_encoder"]
    assert all(torch.equal(before[name], value) for name, value in float_model.state_dict().items())


@pytest.mark.slow
def test_a_frozen_part_is_left_alone_and_still_judged(float_model, prepared, clip):
    student = as_trainable(prepared).train()
    with frozen(student, ("image_encoder", "memory_attention")):
        distillation = PartwiseDistillation(float_model)
        assert set(distillation.forward(student, clip)) == OF_CLIPS - {"image_encoder", "memory_attention"}
        with torch.no_grad():
            assert set(distillation.forward(student, clip)) == OF_CLIPS


@pytest.mark.slow
def test_where_all_that_runs_is_frozen_nothing_is_learned(float_model, prepared):
    image = batch_of(images=True)
    start = copy.deepcopy(prepared.state_dict())
    with frozen(prepared, set(REGIONS) - {"memory_attention"}):
        result = train_qat(
            prepared,
            steps=2,
            batches=lambda first: [image] * 2,
            distill_from=float_model,
            partwise=True,
            progress=False,
        )
    assert result.losses == [0.0, 0.0]
    assert all(torch.equal(start[name], value) for name, value in prepared.state_dict().items())


@pytest.mark.slow
def test_what_no_held_out_batch_runs_is_said_and_stays(float_model, prepared, clip, caplog):
    start = copy.deepcopy(prepared.state_dict())
    result = train_qat(
        prepared,
        steps=1,
        lr=1e-4,
        batches=lambda first: [clip],
        held_out=[batch_of(images=True)],
        distill_from=float_model,
        partwise=True,
        progress=False,
    )
    assert "no held-out batch runs memory_attention, obj_ptr_tpos_proj" in caplog.text
    assert not {"memory_attention", "obj_ptr_tpos_proj"} & result.selected.steps.keys()
    for name, value in prepared.state_dict().items():
        if name.startswith(("memory_attention", "obj_ptr_tpos_proj")):
            assert torch.equal(value, start[name]), name


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("group")
def test_data_parallel_models_exchange_its_gradients(float_model, prepared, clip):
    def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
        distillation = PartwiseDistillation(float_model)
        torch.manual_seed(0)
        distillation.loss(distillation.forward(model, clip), clip).backward()
        return {name: p.grad for name, p in bare(model).named_parameters()}

    parallel = data_parallel(as_trainable(copy.deepcopy(prepared)).train())
    exchanged: list[torch.Tensor] = []

    def exchange(_, bucket):  # torch reads annotations, if there are any
        exchanged.append(bucket.buffer())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    parallel.register_comm_hook(None, exchange)
    found = gradients(parallel)
    assert exchanged
    for name, expected in gradients(as_trainable(copy.deepcopy(prepared)).train()).items():
        if expected is not None:
            assert torch.equal(expected, found[name])


def test_what_it_needs(float_model, clip):
    for given in ({}, {"distill_from": float_model, "distill": DistillationWeights()}):
        with pytest.raises(QConfigError, match="learns from distill_from"):
            train_qat(float_model, steps=1, batches=lambda first: [clip], partwise=True, **given)
    for given, needed in (({"distill": DistillationWeights()}, "distill_from"), ({"judge_every": 1}, "held_out")):
        with pytest.raises(QConfigError, match=needed):
            train_qat(float_model, steps=1, batches=lambda first: [clip], **given)
