from __future__ import annotations

import copy

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao import prepare_qsam2
from qsam2_ao.errors import NonFiniteError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage
from qsam2_ao.training.divergence import check_ranges, name_culprit
from qsam2_ao.training.loop import read_checkpoint
from qsam2_ao.training.qat import train_qat

SMALL = ProceduralBatches((Stage(0, ((BatchKind(1, 2, 1), 1.0),)),))
LAYER = "image_encoder.trunk.blocks.1.mlp.layers.0"


@pytest.fixture(scope="module")
def prepared_model():
    return prepare_qsam2(build_embedded(SAM2VideoPredictor), "w4a8", progress=False)


@pytest.fixture
def prepared(prepared_model):
    return copy.deepcopy(prepared_model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alpha", "what"), [(float("nan"), "is not finite"), (1e-6, "collapsed"), (1e6, "ran away")], ids=str
)
def test_a_lost_range_is_named(prepared, alpha, what):
    check_ranges(prepared)
    prepared.get_submodule(LAYER).weight_fake_quant.alpha_bar[3] = alpha
    with pytest.raises(NonFiniteError, match=rf"{LAYER}.*{what}"):
        check_ranges(prepared)


def test_models_without_quantizers_pass():
    check_ranges(torch.nn.Linear(2, 2))


def test_the_first_tensor_that_is_not_finite_is_named():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert "finite" in name_culprit(model)
    model[0].bias.grad = torch.tensor([1.0, float("inf")])
    assert name_culprit(model) == "the gradient of 0.bias is not finite"
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    assert name_culprit(model) == "1.weight is not finite"


def train_kept(prepared, path, on_step):
    """Four steps, each of which is kept."""
    batches = SMALL.stream(4)
    train_qat(prepared, steps=4, batches=batches, checkpoint=path, checkpoint_every=1, on_step=on_step, progress=False)


@pytest.mark.slow
def test_nan_in_training_names_layer_and_step_and_keeps_the_checkpoint(prepared, tmp_path):
    path = tmp_path / "qat.pt"

    def poison(result):
        if result.step == 2:
            with torch.no_grad():
                prepared.get_submodule(LAYER).weight[0, 0] = float("nan")

    with pytest.raises(NonFiniteError, match=rf"step 2: .*{LAYER}"):
        train_kept(prepared, path, poison)
    kept = read_checkpoint(path)
    assert kept["step"] == 2
    assert all(torch.isfinite(v).all() for v in kept["model"].values() if v.is_floating_point())


@pytest.mark.slow
def test_a_collapsed_range_is_not_saved(prepared, tmp_path):
    path = tmp_path / "qat.pt"

    def collapse(result):
        if result.step == 2:
            with torch.no_grad():
                prepared.get_submodule(LAYER).weight_fake_quant.log_alpha.fill_(-60.0)
                prepared.get_submodule(LAYER).weight_fake_quant.alpha_bar.fill_(1e-20)

    with pytest.raises(NonFiniteError, match=rf"step 3: .*{LAYER}.*collapsed"):
        train_kept(prepared, path, collapse)
    assert read_checkpoint(path)["step"] == 2
