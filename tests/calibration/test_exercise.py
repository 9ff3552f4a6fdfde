from __future__ import annotations

from collections import Counter

import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import nn

from qsam2_ao.calibration import CalibrationImages, load_images
from qsam2_ao.calibration.exercise import _box_around, exercise
from qsam2_ao.models.embedded import build_embedded, load_embedded


def images(count=1) -> CalibrationImages:
    generator = torch.Generator().manual_seed(0)
    return load_images(torch.rand(3, 50, 70, generator=generator) for _ in range(count))


def calls(model, data, **settings):
    """How often each linear or convolution layer ran, and the sum of all inputs."""
    seen: Counter[str] = Counter()
    total = []

    def count(name):
        def hook(module, args, output):
            seen[name] += 1
            total.append(float(args[0].double().sum()))

        return hook

    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    hooks = [layer.register_forward_hook(count(name)) for name, layer in layers.items()]
    exercise(model, data, **settings)
    for hook in hooks:
        hook.remove()
    return seen, total


@pytest.mark.parametrize("model_class", [SAM2Base, SAM2VideoPredictor])
def test_every_region_sees_data(model_class):
    model = build_embedded(model_class)
    seen, _ = calls(model, images())
    layers = [name for name, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert [name for name in layers if not seen[name]] == []


def test_train_class_is_exercised_too_and_its_modes_are_restored():
    train_class = pytest.importorskip("training.model.sam2").SAM2Train
    model = build_embedded(train_class).train()
    model.memory_encoder.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    seen, _ = calls(model, images())
    assert seen["memory_encoder.out_proj"]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_same_seed_gives_the_same_run_and_another_seed_other_prompts():
    model = build_embedded()
    state = torch.random.get_rng_state()
    first, second, other = (calls(model, images(), seed=seed)[1] for seed in (0, 0, 1))
    assert first == second
    assert first != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_batches_of_several_images():
    seen, _ = calls(build_embedded(), images(3), batch_size=2)
    assert seen["image_encoder.neck.convs.0.conv"] == 2 * 3  # two batches, three frames each


def test_boxes_are_put_around_what_the_point_segmented():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 2:5, 3:8] = True
    other = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[2.0, 3.0], [4.0, 6.0]]])
    boxes = _box_around(masks, other)
    assert boxes.tolist() == [[[3, 2], [8, 5]], [[2, 3], [4, 6]]]
    assert other[0].tolist() == [[0, 0], [1, 1]]


def test_a_changed_model_can_be_prompted_with_the_same_boxes():
    model = load_embedded()
    boxes = exercise(model, images(3), batch_size=2)
    assert [box.shape for box in boxes] == [(2, 2, 2), (1, 2, 2)]
    with torch.no_grad():
        model.sam_mask_decoder.output_upscaling[0].weight.mul_(-1)
    assert not all(torch.equal(a, b) for a, b in zip(boxes, exercise(model, images(3), batch_size=2), strict=True))
    assert exercise(model, images(3), batch_size=2, boxes=boxes) == boxes
