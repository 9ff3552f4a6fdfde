from __future__ import annotations

import os

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from training.model.sam2 import SAM2Train

from qsam2_ao.errors import CheckpointError, QSAM2Error
from qsam2_ao.models.embedded import (
    EMBEDDED_CONFIG,
    EMBEDDED_WEIGHTS,
    build_embedded,
    load_embedded,
    load_weights,
    save_weights,
)


def test_config_has_every_feature_of_the_official_one():
    import sam2

    official = OmegaConf.load(os.path.join(os.path.dirname(sam2.__file__), "configs/sam2.1/sam2.1_hiera_t.yaml"))
    ours = OmegaConf.load(EMBEDDED_CONFIG)
    for name, value in official.model.items():
        assert name in ours.model
        if not OmegaConf.is_config(value) and name != "image_size":
            assert ours.model[name] == value, name


@pytest.mark.parametrize("model_class", [None, SAM2Base, SAM2VideoPredictor, SAM2Train])
def test_builds_as_any_sam2_class(model_class):
    model = build_embedded(model_class)
    assert type(model) is (model_class or SAM2Base)
    assert not model.training
    assert 2.4e6 < sum(p.numel() for p in model.parameters()) < 2.8e6


def test_seeded_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (build_embedded(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_starts_where_it_can_learn():
    model = build_embedded()
    assert model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.item() == 4
    attention = model.sam_mask_decoder.transformer.layers[0].cross_attn_token_to_image
    assert torch.equal(attention.q_proj.weight, attention.k_proj.weight)
    attention = model.memory_attention.layers[0].cross_attn_image
    assert torch.equal(attention.q_proj.bias, attention.k_proj.bias)


def test_postprocessing_is_that_of_build_sam():
    plain = build_embedded(SAM2VideoPredictor)
    processed = build_embedded(SAM2VideoPredictor, apply_postprocessing=True)
    assert not plain.sam_mask_decoder.dynamic_multimask_via_stability
    assert not plain.binarize_mask_from_pts_for_mem_enc
    assert processed.sam_mask_decoder.dynamic_multimask_via_stability
    assert processed.binarize_mask_from_pts_for_mem_enc
    # build_sam2 doesn't binarize either where the class is not the video predictor
    assert not build_embedded(apply_postprocessing=True).binarize_mask_from_pts_for_mem_enc


def test_overrides_reach_the_class():
    assert build_embedded(SAM2VideoPredictor, non_overlap_masks=True).non_overlap_masks


def test_weights_survive_a_round_trip(tmp_path):
    model, path = build_embedded(seed=3), tmp_path / "model.safetensors"
    save_weights(model.state_dict(), path)
    other = build_embedded(seed=4)
    load_weights(other, path)
    for name, value in other.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].half().float())


def test_the_trained_model_is_small_and_loads():
    assert EMBEDDED_WEIGHTS.stat().st_size <= 8 * 2**20
    model = load_embedded()
    assert isinstance(model, SAM2VideoPredictor)
    assert not model.training
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert type(load_embedded(SAM2Train, num_correction_pt_per_frame=1)) is SAM2Train


@pytest.mark.slow
def test_the_trained_model_segments_the_validation_split():
    from qsam2_ao.training.validation import quick_score

    score = quick_score(load_embedded(SAM2Train, num_correction_pt_per_frame=1), videos=8, num_frames=8)
    assert score.jf > 70
    assert score.box > 70


def test_each_model_is_had_by_its_name():
    assert load_embedded(name="embedded-256").image_size == 256
    with pytest.raises(QSAM2Error, match=r"unknown embedded model 'embedded-265'.*did you mean 'embedded-256'"):
        load_embedded(name="embedded-265")
    with pytest.raises(QSAM2Error, match=r"model_class must be a class .* not 'embedded-256'.*name="):
        load_embedded("embedded-256")


def test_absent_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_embedded(weights=tmp_path / "none.safetensors")


def test_truncated_and_foreign_bytes_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(build_embedded().state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000000])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_embedded(weights=path)
    path.write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_embedded(weights=path)


def test_another_models_file_is_refused_by_name(tmp_path):
    path, state = tmp_path / "model.safetensors", dict(build_embedded().state_dict())
    value = state.pop("no_mem_embed")
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"missing .'no_mem_embed'"):
        load_embedded(weights=path)
    save_file({**state, "no_mem_embed": value, "extra": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"unknown .'extra'"):
        load_embedded(weights=path)
    save_file({**state, "no_mem_embed": value[..., :3].contiguous()}, path)
    with pytest.raises(CheckpointError, match="no_mem_embed has shape"):
        load_embedded(weights=path)


def test_diverged_weights_are_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"layer\.weight"):
        save_weights({"layer.weight": torch.tensor([1.0, float("nan")])}, tmp_path / "x.safetensors")
    assert not any(tmp_path.iterdir())
