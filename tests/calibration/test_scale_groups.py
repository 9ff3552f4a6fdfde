from __future__ import annotations

import copy

import pytest
import torch
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao.calibration import exercise, load_images
from qsam2_ao.calibration.scale_groups import rescale, scale_groups
from qsam2_ao.errors import CalibrationError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.models.official import build_official

SEEN = ("image_encoder", "memory_attention", "memory_encoder", "sam_mask_decoder.transformer", "obj_ptr_proj")


def outputs_of(model):
    """What every region computes while the model is exercised, in float64."""
    seen = []

    def flatten(value):
        if isinstance(value, torch.Tensor):
            seen.append(value.double())
        elif isinstance(value, dict):
            flatten(list(value.values()))
        elif isinstance(value, (list, tuple)):
            [flatten(item) for item in value]

    hooks = [model.get_submodule(n).register_forward_hook(lambda m, i, o: flatten(o)) for n in SEEN]
    exercise(model, load_images(torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.fixture(scope="module")
def model():
    return build_embedded(SAM2VideoPredictor)


def test_rescaling_changes_nothing_in_float(model):
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for group in scale_groups(changed):
        rescale(changed, group, torch.exp(torch.randn(group.channels, generator=generator)))
    before, after = outputs_of(model), outputs_of(changed)
    assert len(before) == len(after) > 50
    for a, b in zip(before, after, strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm()


@pytest.mark.slow
def test_every_group_is_really_rescaled(model):
    for group in scale_groups(model):
        changed = copy.deepcopy(model)
        rescale(changed, group, torch.full((group.channels,), 2.0))
        names = {n for n, p in changed.named_parameters() if not torch.equal(p, model.get_parameter(n))}
        modules = {name.rpartition(".")[0] for name in names}
        assert modules == {group.producer, *group.consumers}


def test_no_channel_is_in_two_groups(model):
    groups = scale_groups(model)
    written = [(g.producer, g.first) for g in groups]
    read = [consumer for g in groups for consumer in g.consumers]
    assert len(set(written)) == len(written)
    assert len(set(read)) == len(read)


def test_an_official_model_has_groups_in_every_region():
    groups = scale_groups(build_official("sam2.1-t"))
    regions = {group.producer.split(".")[0] for group in groups}
    assert regions >= {"image_encoder", "memory_attention", "memory_encoder", "sam_mask_decoder"}


def test_factors_must_be_positive_and_fit(model):
    group = scale_groups(model)[0]
    for factors in (torch.ones(3), torch.zeros(group.channels), torch.full((group.channels,), float("nan"))):
        with pytest.raises(CalibrationError, match=group.producer):
            rescale(copy.deepcopy(model), group, factors)
