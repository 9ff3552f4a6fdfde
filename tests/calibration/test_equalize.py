from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao import prepare_qsam2
from qsam2_ao.calibration.equalize import balance, equalize_qsam2
from qsam2_ao.evaluation.agreement import sqnr
from qsam2_ao.models.embedded import load_embedded

positive = st.lists(st.floats(0.01, 100), min_size=2, max_size=20)


@settings(max_examples=50, deadline=None)
@given(positive, st.integers(0, 2**16))
def test_the_scale_is_the_best_one(inputs, seed):
    x = torch.tensor(inputs, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    w = torch.rand(len(inputs), generator=generator, dtype=torch.float64) + 0.01
    scale = balance(x, w)

    def error(s):
        return float((w * s).square().sum() * (x / s).square().sum())

    bound = float((w * x).sum() ** 2)  # Cauchy-Schwarz
    assert abs(error(scale) - bound) < 1e-6 * bound
    other = scale * torch.exp(0.3 * torch.randn(len(inputs), generator=generator, dtype=torch.float64))
    assert error(scale) <= error(other) * (1 + 1e-9)


def test_silent_channels_keep_their_scale():
    scale = balance(torch.tensor([0.0, 4.0, 1.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double())
    assert scale.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(balance(torch.zeros(3), torch.zeros(3)), torch.ones(3))


@pytest.mark.slow
def test_float_outputs_stay_and_outlier_columns_go():
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    model = load_embedded(SAM2VideoPredictor)
    block = model.image_encoder.trunk.blocks[1]
    with torch.no_grad():  # an outlier that float does not notice
        block.norm2.weight[3] /= 20
        block.norm2.bias[3] /= 20
        block.mlp.layers[0].weight[:, 3] *= 20
    equalized = equalize_qsam2(model, images, progress=False)
    with torch.no_grad():
        wanted = model.image_encoder(images)["backbone_fpn"][-1]
        assert sqnr(wanted, equalized.image_encoder(images)["backbone_fpn"][-1]) > 80

    def column_share(m):
        weight = m.image_encoder.trunk.blocks[1].mlp.layers[0].weight
        norms = weight.norm(dim=0)
        return float(norms[3] / norms.mean())

    assert column_share(model) > 10
    assert column_share(equalized) < 2


@pytest.mark.slow
def test_a_channel_that_is_large_all_the_time_is_no_outlier():
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    model = load_embedded(SAM2VideoPredictor)
    moved = copy.deepcopy(model)
    block = moved.image_encoder.trunk.blocks[1]
    with torch.no_grad():  # the next bias takes the offset back
        block.norm2.bias[3] += 300
        block.mlp.layers[0].bias -= 300 * block.mlp.layers[0].weight[:, 3]
    norms = [
        equalize_qsam2(m, images, progress=False)
        .image_encoder.trunk.blocks[1]
        .mlp.layers[0]
        .weight.detach()
        .norm(dim=0)
        for m in (model, moved)
    ]
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_equalized_models_are_prepared_like_any_other():
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    equalized = equalize_qsam2(load_embedded(SAM2VideoPredictor), images, progress=False)
    prepared = prepare_qsam2(equalized, "w2a4", calibration_data=images, progress=False)
    assert type(prepared) is SAM2VideoPredictor
