from __future__ import annotations

import pytest
import torch

from qsam2_ao.benchmark.accuracy.models import HeavyTails, build_model, weight_shapes
from qsam2_ao.errors import QConfigError
from qsam2_ao.evaluation import sqnr


def features(model):
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.image_encoder(images)["backbone_fpn"][-1]


def kurtosis(model):
    shapes = weight_shapes(model)
    return sum(shape.kurtosis for shape in shapes) / len(shapes)


def test_heavy_tails_change_the_weights_and_nothing_else():
    plain, heavy = build_model("plain"), build_model("heavy-tailed")
    assert sqnr(features(plain), features(heavy)) > 80
    assert kurtosis(heavy) > kurtosis(plain) + 10


def test_outliers_of_activations_change_nothing_in_float():
    plain, offset = build_model("plain"), build_model("outliers")
    assert sqnr(features(plain), features(offset)) > 80
    largest = []
    for model in (plain, offset):
        norm = model.image_encoder.trunk.blocks[2].norm2
        handle = norm.register_forward_hook(lambda _, __, output: largest.append(output.abs().max()))
        features(model)
        handle.remove()
    assert largest[1] > 20 > 2 * largest[0]


def test_outliers_repeat_and_depend_on_their_seed():
    plain = build_model("plain")
    name = "image_encoder.trunk.blocks.2.mlp.layers.0.weight"
    first, again, other = (HeavyTails(seed=seed).apply(plain).get_parameter(name) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_share_of_outlier_columns_is_as_asked():
    plain = build_model("plain")
    heavy = HeavyTails(share=0.25, smallest=8, largest=8).apply(plain)
    name = "image_encoder.trunk.blocks.2.mlp.layers.0.weight"
    ratio = (heavy.get_parameter(name) / plain.get_parameter(name)).mean(0)
    torch.testing.assert_close(ratio.sort().values[-16:], torch.full((16,), 8.0))
    torch.testing.assert_close(ratio.sort().values[:-16], torch.ones(48))


def test_an_unknown_model_is_refused():
    with pytest.raises(QConfigError, match=r"'light-tailed'.*plain"):
        build_model("light-tailed")


def test_shapes_are_those_of_the_distributions():
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.image_encoder = torch.nn.Linear(400, 400)
    with torch.no_grad():
        model.image_encoder.weight.normal_()
    model.image_encoder = torch.nn.Sequential(model.image_encoder)
    (shape,) = weight_shapes(model)
    assert abs(shape.kurtosis) < 0.1
    assert 4 < shape.max_over_std < 6
