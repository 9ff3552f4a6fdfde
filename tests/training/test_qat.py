from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor
from training.model.sam2 import SAM2Train

from qsam2_ao import prepare_qsam2
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage
from qsam2_ao.training.distillation import RECOMMENDED, DistillationWeights
from qsam2_ao.training.losses import TRAIN_OVERRIDES
from qsam2_ao.training.qat import Rates, as_trainable, qat_optimizer, train_qat

SMALL = ProceduralBatches((Stage(0, ((BatchKind(1, 2, 1), 0.5), (BatchKind(1, 2, 1, images=True), 0.5))),))


@pytest.fixture(scope="module")
def prepared_model():
    return prepare_qsam2(build_embedded(SAM2VideoPredictor), "w4a8", progress=False)


@pytest.fixture
def prepared(prepared_model):
    return lambda: copy.deepcopy(prepared_model)


@pytest.mark.slow
def test_trains_a_predictor_in_place(prepared):
    model = prepared()
    before = copy.deepcopy(model.state_dict())
    result = train_qat(model, steps=3, batches=SMALL.stream(3), progress=False)
    assert type(model) is SAM2VideoPredictor
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert result.step == 3
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    # Weights, learned clipping and running statistics all moved.
    name = "image_encoder.trunk.blocks.1.mlp.layers.0"
    assert f"{name}.weight" in changed
    assert any(key.startswith(f"{name}.weight_fake_quant") for key in changed)


@pytest.mark.slow
def test_default_batches_have_the_models_size(prepared):
    result = train_qat(prepared(), steps=1, progress=False)
    assert len(result.losses) == 1


@pytest.mark.slow
def test_same_seed_same_weights(prepared):
    states = []
    for _ in range(2):
        model = prepared()
        train_qat(model, steps=2, batches=SMALL.stream(2), progress=False)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_the_same_bits_on_any_number_of_threads_and_beside_other_programs(prepared):
    def trained(threads):
        model, before = prepared(), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            train_qat(
                model,
                steps=2,
                batches=SMALL.stream(2),
                distill_from=build_embedded(SAM2VideoPredictor),
                distill=RECOMMENDED,
                progress=False,
            )
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        return model.state_dict()

    first = trained(1)
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        second = trained(2)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert all(torch.equal(first[name], value) for name, value in second.items())


@pytest.mark.slow
def test_distillation_pulls_towards_the_float_model():
    teacher = build_embedded(SAM2VideoPredictor)
    images = SMALL.stream(1)
    with torch.no_grad():
        batch = next(iter(images(0)))
        target = teacher.image_encoder(batch.flat_img_batch)["backbone_fpn"][0]

    def distance(model):
        with torch.no_grad():
            return (model.image_encoder(batch.flat_img_batch)["backbone_fpn"][0] - target).square().mean()

    near, far = (copy.deepcopy(teacher) for _ in range(2))
    for model in (near, far):
        with torch.no_grad():
            for block in model.image_encoder.trunk.blocks:
                block.attn.proj.weight.mul_(1.5)
    start = distance(near)
    stream = lambda first: [batch] * 8  # noqa: E731
    before = [parameter.clone() for parameter in teacher.parameters()]
    strong = DistillationWeights(features=100.0)
    train_qat(near, steps=8, batches=stream, distill_from=teacher, distill=strong, progress=False)
    train_qat(far, steps=8, batches=stream, progress=False)
    assert distance(near) < min(start, distance(far))
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


@pytest.mark.slow
def test_interrupted_qat_resumes_to_the_bit(prepared, tmp_path):
    whole = prepared()
    train_qat(whole, steps=2, batches=SMALL.stream(2), progress=False)
    stream = SMALL.stream(2)

    def stopped(first):
        for step, batch in enumerate(stream(first), start=first):
            if step == 1:
                raise KeyboardInterrupt
            yield batch

    path = tmp_path / "qat.pt"
    with pytest.raises(KeyboardInterrupt):
        train_qat(prepared(), steps=2, batches=stopped, checkpoint=path, progress=False)
    resumed = prepared()
    train_qat(resumed, steps=2, batches=SMALL.stream(2), checkpoint=path, progress=False)
    expected = whole.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.state_dict().items())


@pytest.mark.slow
def test_as_trainable_shares_and_prompts():
    predictor = build_embedded(SAM2VideoPredictor)
    trainable = as_trainable(predictor)
    assert type(trainable) is SAM2Train
    assert trainable.image_encoder is predictor.image_encoder
    assert trainable.num_correction_pt_per_frame == TRAIN_OVERRIDES["num_correction_pt_per_frame"]
    assert as_trainable(trainable) is trainable


@pytest.mark.slow
def test_vectors_and_ranges_have_learning_rates_of_their_own(prepared):
    model = prepared()
    named = {id(parameter): (name, parameter.ndim) for name, parameter in model.named_parameters()}
    groups = {
        g["lr"]: [named[id(p)] for p in g["params"]] for g in qat_optimizer(model, Rates(1.0, 2.0, 3.0)).param_groups
    }
    assert set(groups) == {1.0, 2.0, 3.0}
    assert all(name.endswith("log_alpha") for name, _ in groups[3.0])
    assert all(ndim < 2 and not name.endswith("log_alpha") for name, ndim in groups[2.0])
    assert all(ndim >= 2 for _, ndim in groups[1.0])
    assert sum(map(len, groups.values())) == len(named)
