from __future__ import annotations

import copy
import json
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor, SAM2VideoPredictorVOS
from torch import nn
from training.model.sam2 import SAM2Train

from qsam2_ao.compat.registration import meta_parameters
from qsam2_ao.errors import CheckpointError, GraphTraceError, QSAM2Error
from qsam2_ao.models.config import as_class, build_from_config, model_config
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.models.official import OFFICIAL
from qsam2_ao.stage import ModelStage, set_stage, stage_of

# What sam2.build_sam adds for inference.
IMAGE = [
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
]
VIDEO = [
    "++model._target_=sam2.sam2_video_predictor.SAM2VideoPredictor",
    *IMAGE,
    "++model.binarize_mask_from_pts_for_mem_enc=true",
    "++model.fill_hole_area=8",
]
TRAIN = [
    "++model._target_=training.model.sam2.SAM2Train",
    "++model.image_encoder.trunk.drop_path_rate=0.1",
    "++model.prob_to_use_pt_input_for_train=0.5",
    "++model.num_correction_pt_per_frame=3",
]


def official(name: str, overrides: list[str]) -> nn.Module:
    """As sam2.build_sam does, but with its parameters on the meta device."""
    config = compose(OFFICIAL[name], overrides=overrides)
    OmegaConf.resolve(config)
    with meta_parameters():
        return instantiate(config.model, _recursive_=True)


def settings_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every plain attribute of every module, with OmegaConf's containers and tuples as lists."""

    def normal(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: normal(item) for key, item in value.items()}
        if isinstance(value, str) or not hasattr(value, "__len__"):
            return value
        return [normal(item) for item in value]

    for name, module in model.named_modules():
        yield f"{name}.__class__", type(module)
        for key, value in vars(module).items():
            if not key.startswith("_") and key != "training":
                if isinstance(value, torch.Tensor):
                    yield f"{name}.{key}", (value.shape, value.real.sum().item(), value.imag.sum().item())
                    continue
                value = normal(value)
                if isinstance(value, (bool, int, float, str, list, dict, type(None))):
                    yield f"{name}.{key}", value


def assert_same_model(model: nn.Module, rebuilt: nn.Module) -> None:
    state, other = model.state_dict(), rebuilt.state_dict()
    assert list(state) == list(other)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in other.items()}
    settings, others = dict(settings_of(model)), dict(settings_of(rebuilt))
    assert len(settings) > 500
    assert settings == others


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [(name, VIDEO) for name in OFFICIAL] + [("sam2.1-t", []), ("sam2.1-s", IMAGE), ("sam2.1-b+", TRAIN)],
)
def test_rebuilds_every_official_config(name: str, overrides: list[str]) -> None:
    model = official(name, overrides)
    config = model_config(model)
    rebuilt = build_from_config(json.loads(json.dumps(config)), meta=True)
    assert type(rebuilt) is type(model)
    assert_same_model(model, rebuilt)


def test_equal_outputs_with_the_same_weights() -> None:
    model = build_embedded(SAM2VideoPredictor, fill_hole_area=3)
    rebuilt = build_from_config(model_config(model), model_class=SAM2VideoPredictor)
    rebuilt.load_state_dict(model.state_dict())
    assert rebuilt.fill_hole_area == 3
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = model.forward_image(image), rebuilt.forward_image(image)
        memory = torch.randn(72, 1, 32, generator=torch.Generator().manual_seed(1))
        tokens = torch.randn(36, 1, 64, generator=torch.Generator().manual_seed(2))
        attended = [m.memory_attention(tokens, memory, tokens, memory) for m in (model, rebuilt)]
        masks = torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(3))
        encoded = [m.memory_encoder(expected["vision_features"], masks) for m in (model, rebuilt)]
        top, fine = expected["vision_features"], expected["backbone_fpn"][:2]
        heads = [m._forward_sam_heads(top, high_res_features=fine) for m in (model, rebuilt)]
    for key in ("backbone_fpn", "vision_pos_enc"):
        assert all(torch.equal(a, b) for a, b in zip(expected[key], actual[key], strict=True))
    assert torch.equal(*attended)
    assert torch.equal(*(out["vision_features"] for out in encoded))
    assert all(torch.equal(a, b) for a, b in zip(*heads, strict=True))


def test_a_config_laid_out_by_hand_builds() -> None:
    config = OmegaConf.to_container(compose(OFFICIAL["sam2.1-t"]).model)
    model = build_from_config(config, meta=True, model_class=SAM2Train)
    assert isinstance(model, SAM2Train)
    assert_same_model(model, official("sam2.1-t", ["++model._target_=training.model.sam2.SAM2Train"]))


def hiera(**arguments: Any) -> Hiera:
    with meta_parameters():
        return Hiera(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"embed_dim": 32, "stages": (1, 2, 3, 1), "global_att_blocks": None, "q_pool": 2},
        {"embed_dim": 33, "stages": (1, 1), "window_spec": (8, 4), "dim_mul": 1.5, "head_mul": 1.0,
         "q_pool": 1},
        {"embed_dim": 7, "stages": (1, 1, 1), "window_spec": (8, 4, 2), "dim_mul": 2.3, "head_mul": 1.0,
         "q_pool": 0},
        {"embed_dim": 8, "stages": (2,), "window_spec": (4,), "q_pool": 0, "return_interm_layers": False},
        {"embed_dim": 16, "stages": (1, 1, 2, 1), "drop_path_rate": 0.3},
    ],
)  # fmt: skip
def test_hiera_of_other_proportions(arguments: dict[str, Any]) -> None:
    from qsam2_ao.models.config import _describe

    trunk = hiera(**arguments)
    rebuilt = build_from_config(_describe(trunk, {}, {}), meta=True)
    assert {k: v.shape for k, v in trunk.state_dict().items()} == {k: v.shape for k, v in rebuilt.state_dict().items()}
    assert dict(settings_of(trunk)) == dict(settings_of(rebuilt))


@pytest.mark.parametrize("size", [[6, 6], [64, 64], [5, 7], [1, 4], [4, 1]])
def test_rope_grid_is_recovered(size: list[int]) -> None:
    from qsam2_ao.models.config import _describe

    attention = RoPEAttention(embedding_dim=10, num_heads=1, downsample_rate=1, feat_sizes=size, rope_theta=7.0)
    described = _describe(attention, {}, {})
    if size != [1, 4]:  # a column of width 1 has the same rotation as no row at all
        assert described["feat_sizes"] == size
    assert torch.equal(build_from_config(described).freqs_cis, attention.freqs_cis)


def test_optional_arguments_of_parts() -> None:
    config = model_config(build_embedded())
    config["memory_encoder"]["out_dim"] = config["memory_encoder"]["in_dim"]
    fuser = config["memory_encoder"]["fuser"]
    fuser.update(dim=64, input_projection=True)
    fuser["layer"].update(drop_path=0.25, layer_scale_init_value=0.0, use_dwconv=False)
    config["image_encoder"]["neck"].update(fuse_type="avg", fpn_top_down_levels=None)
    config["image_encoder"]["neck"]["position_encoding"]["scale"] = 3.0
    config["no_obj_embed_spatial"] = False
    for layer in ("self_attention", "cross_attention"):
        part = config["memory_attention"]["layer"][layer]
        part.update(kv_in_dim=64)
    config["memory_attention"]["layer"]["self_attention"] = {
        "_target_": "sam2.modeling.sam.transformer.Attention", "embedding_dim": 64, "num_heads": 2,
        "downsample_rate": 4,
    }  # fmt: skip
    model = build_from_config(config, meta=True)
    assert_same_model(model, build_from_config(model_config(model), meta=True))
    assert model_config(model)["memory_encoder"]["fuser"]["layer"]["layer_scale_init_value"] == 0.0


def test_decoder_switches_set_afterwards_are_kept() -> None:
    model = build_embedded(apply_postprocessing=True)
    model.sam_mask_decoder.dynamic_multimask_via_stability = False
    model.sam_mask_decoder.dynamic_multimask_stability_thresh = 0.9
    decoder = build_from_config(model_config(model), meta=True).sam_mask_decoder
    assert decoder.dynamic_multimask_via_stability is False
    assert decoder.dynamic_multimask_stability_thresh == 0.9


def test_config_after_running_at_another_size() -> None:
    model = build_embedded()
    tokens, memory = torch.zeros(16, 1, 64), torch.zeros(16, 1, 32)
    with torch.no_grad():
        model.memory_attention(tokens, memory, tokens, memory)
    layer = model_config(model)["memory_attention"]["layer"]
    assert layer["self_attention"]["feat_sizes"] == [4, 4]


# --- meta device and random state


def test_meta_parameters_take_no_memory_and_buffers_are_real() -> None:
    model = build_from_config(model_config(build_embedded()), meta=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert all(not buffer.is_meta for buffer in model.buffers())
    assert not any(module.training for module in model.modules())
    for layer in model.memory_attention.layers:
        assert not layer.self_attn.freqs_cis.is_meta
    # The hooks are gone again.
    assert not nn.Linear(2, 2).weight.is_meta


def test_equal_tables_of_frequencies_are_one() -> None:
    own = build_embedded()
    shared = build_from_config(model_config(own), meta=True)
    attentions = [m for m in shared.modules() if isinstance(m, RoPEAttention)]
    assert len({attention.freqs_cis.data_ptr() for attention in attentions}) == 1 < len(attentions)
    assert torch.equal(attentions[0].freqs_cis, own.memory_attention.layers[0].self_attn.freqs_cis)
    # Other copies are copies as ever.
    copied = copy.deepcopy(attentions[0])
    assert copied.freqs_cis.data_ptr() != attentions[0].freqs_cis.data_ptr()
    pickle.dumps(copied.freqs_cis)


@pytest.mark.parametrize("meta", [False, True])
def test_global_random_state_is_untouched(meta: bool) -> None:
    config = model_config(build_embedded())
    before = torch.random.get_rng_state()
    build_from_config(config, meta=meta)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_default_device_does_not_matter() -> None:
    config = model_config(build_embedded())
    with torch.device("meta"):
        model = build_from_config(config)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


# --- other classes


class MyPredictor(SAM2VideoPredictor):
    def propagate_in_video(self, *args: Any, **kwargs: Any) -> Any:
        return super().propagate_in_video(*args, **kwargs)


class MyHiera(Hiera):
    pass


class OtherForward(Hiera):
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [2 * y for y in super().forward(x)]


def test_a_users_model_class_is_described_as_its_base_and_can_be_built_again() -> None:
    model = build_embedded(MyPredictor, fill_hole_area=2)
    config = model_config(model)
    assert config["_target_"] == "sam2.sam2_video_predictor.SAM2VideoPredictor"
    rebuilt = build_from_config(config, meta=True, model_class=MyPredictor)
    assert type(rebuilt) is MyPredictor
    assert rebuilt.fill_hole_area == 2


def test_a_users_part_is_described_as_its_base() -> None:
    model = build_embedded()
    model.image_encoder.trunk.__class__ = MyHiera
    assert model_config(model)["image_encoder"]["trunk"]["_target_"].endswith("hieradet.Hiera")


def test_parts_with_other_methods_are_refused() -> None:
    model = build_embedded()
    model.image_encoder.trunk.__class__ = OtherForward
    with pytest.raises(GraphTraceError, match=r"image_encoder\.trunk is a .*OtherForward.*overrides forward"):
        model_config(model)


class Foreign(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.layers = nn.ModuleList()


def test_foreign_classes_are_named() -> None:
    with pytest.raises(GraphTraceError, match=r"torch\.nn\.modules\.linear\.Linear"):
        model_config(nn.Linear(2, 2))
    with pytest.raises(GraphTraceError, match="SAM2Base family"):
        model_config(build_embedded().image_encoder)
    model = build_embedded()
    model.memory_attention = Foreign(64)
    with pytest.raises(GraphTraceError, match=r"memory_attention is a .*Foreign, which is not one of SAM2's"):
        model_config(model)


def _prune(model: Any) -> None:
    model.image_encoder.trunk.blocks = model.image_encoder.trunk.blocks[:2]


def _widen(model: Any) -> None:
    model.sam_mask_decoder.iou_prediction_head.layers[0] = nn.Linear(64, 255)


def _swap(model: Any) -> None:
    model.memory_attention.layers[0].norm1 = nn.Identity()


def _add(model: Any) -> None:
    model.adapter = nn.Identity()


def _grow(model: Any) -> None:
    model.no_mem_embed = nn.Parameter(torch.zeros(1, 2, 64))


def _retune(model: Any) -> None:
    model.memory_attention.layers[1].dropout2.p = 0.5


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_prune, r"image_encoder\.trunk"),
        (_widen, r"sam_mask_decoder\.iou_prediction_head\.layers\.0\.out_features is 255"),
        (_swap, r"memory_attention\.layers\.0\.norm1 is a .*Identity"),
        (_add, "module adapter was added"),
        (_grow, r"no_mem_embed has shape torch.Size\(\[1, 2, 64\]\)"),
        (_retune, r"memory_attention\.layers\.1\.dropout2\.p is 0\.5"),
    ],
)
def test_changed_models_are_refused_by_name(change: Any, name: str) -> None:
    model = build_embedded()
    change(model)
    with pytest.raises(GraphTraceError, match=name):
        model_config(model)


# --- configs from files


def test_nothing_is_imported_from_a_package_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**model_config(build_embedded(SAM2VideoPredictor)), "_target_": "training.model.sam2.SAM2Train"}
    (tmp_path / "training/model").mkdir(parents=True)
    for name in ("__init__.py", "model/__init__.py", "model/sam2.py"):
        (tmp_path / "training" / name).write_text("raise SystemExit('this ran')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "training"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match="not the sam2 package's: load the model as another class"):
        build_from_config(config, meta=True)
    assert type(build_from_config(config, meta=True, model_class=SAM2VideoPredictor)) is SAM2VideoPredictor


def test_only_sam2s_classes_are_built() -> None:
    config = model_config(build_embedded())
    for target in ("os.system", "torch.load", "torch.nn.Linear", None, ["os.system"]):
        bad = copy.deepcopy(config)
        bad["image_encoder"]["trunk"] = {"_target_": target, "command": "true"}
        with pytest.raises(CheckpointError, match=r"model\.image_encoder\.trunk\._target_"):
            build_from_config(bad)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("surprise", 1, r"model\.surprise is not an argument of sam2\.modeling\.sam2_base\.SAM2Base"),
        ("compile_image_encoder", True, "compile_image_encoder must be False"),
        ("image_encoder", 3, "cannot be built"),
        ("image_size", "96", "cannot be built"),
        ("backbone_stride", 0, "cannot be built"),
        ("num_maskmem", b"7", "cannot"),
        ("image_size", object(), "image_size is a builtins.object"),
        ("sam_mask_decoder_extra_args", {"depth": 2}, "unexpected keyword argument 'depth'"),
    ],
)
def test_bad_arguments_are_named(key: str, value: Any, message: str) -> None:
    config = model_config(build_embedded())
    config[key] = value
    with pytest.raises(CheckpointError, match=message):
        build_from_config(config, meta=True)


def test_weight_files_are_not_read() -> None:
    config = model_config(build_embedded())
    config["image_encoder"]["trunk"]["weights_path"] = "weights.pt"
    with pytest.raises(CheckpointError, match=r"trunk\.weights_path must be None"):
        build_from_config(config, meta=True)


@pytest.mark.parametrize("config", [{}, {"image_size": 96}, [], "model", None])
def test_configs_that_are_none(config: Any) -> None:
    with pytest.raises(CheckpointError, match="model"):
        build_from_config(config)


# --- the same model in another class


def test_as_class_shares_everything() -> None:
    model = build_embedded(SAM2VideoPredictor, fill_hole_area=5).train()
    train = as_class(model, SAM2Train, num_correction_pt_per_frame=2, prob_to_use_pt_input_for_train=0.5)
    assert type(train) is SAM2Train
    assert train.training
    assert train.num_correction_pt_per_frame == 2
    assert train.prob_to_use_pt_input_for_train == 0.5
    assert train.pt_sampling_for_eval == "center"
    assert train.rng.random() == SAM2Train(**_parts()).rng.random()
    for (name, parameter), (other_name, other) in zip(model.named_parameters(), train.named_parameters(), strict=True):
        assert name == other_name
        assert parameter is other
    assert all(a is b for a, b in zip(model.buffers(), train.buffers(), strict=True))
    assert train.image_encoder is model.image_encoder
    back = as_class(train, SAM2VideoPredictor)
    assert back.fill_hole_area == 5
    assert back.no_mem_embed is model.no_mem_embed


def _parts() -> dict[str, Any]:
    model = build_embedded()
    return {name: getattr(model, name) for name in ("image_encoder", "memory_attention", "memory_encoder")}


def test_as_class_is_a_new_object() -> None:
    model = build_embedded()
    other = as_class(model, SAM2Base)
    assert other is not model
    other.extra = nn.Identity()
    other.register_parameter("more", nn.Parameter(torch.zeros(1)))
    assert not hasattr(model, "extra")
    assert "more" not in model.state_dict()
    other.eval()
    model.train()
    assert not other.training


def test_a_predictor_of_another_class_computes_the_same_as_one_built_so() -> None:
    built = build_embedded(SAM2VideoPredictor, fill_hole_area=1, non_overlap_masks=True)
    moved = as_class(build_embedded(SAM2Base), SAM2VideoPredictor, fill_hole_area=1, non_overlap_masks=True)
    assert dict(settings_of(moved)) == dict(settings_of(built))
    assert all(torch.equal(a, b) for a, b in zip(built.state_dict().values(), moved.state_dict().values(), strict=True))


def test_as_class_takes_inference_settings() -> None:
    model = build_embedded()
    moved = as_class(model, SAM2VideoPredictor, binarize_mask_from_pts_for_mem_enc=True)
    assert moved.binarize_mask_from_pts_for_mem_enc is True
    assert model.binarize_mask_from_pts_for_mem_enc is False
    assert model_config(moved)["binarize_mask_from_pts_for_mem_enc"] is True


@pytest.mark.parametrize("name", ["image_size", "pred_obj_scores", "freeze_image_encoder", "nonsense"])
def test_as_class_refuses_what_would_change_the_network(name: str) -> None:
    with pytest.raises(QSAM2Error, match=f"{name} is not a setting of SAM2Train"):
        as_class(build_embedded(), SAM2Train, **{name: 64})


def test_as_class_refuses_other_classes() -> None:
    with pytest.raises(QSAM2Error, match="model_class must be SAM2Base"):
        as_class(build_embedded(), nn.Linear)  # type: ignore[type-var]
    with pytest.raises(QSAM2Error, match="model_class must be SAM2Base"):
        as_class(build_embedded(), "SAM2Base")  # type: ignore[arg-type]


def test_models_with_replaced_parts_use_the_config_they_carry() -> None:
    model = build_embedded(SAM2VideoPredictor, fill_hole_area=4)
    config = model_config(model)
    set_stage(model, ModelStage(config=config))
    # Any module in place of the part, as the traced graphs are.
    model.image_encoder.trunk = nn.Sequential(model.image_encoder.trunk)
    model.memory_attention = nn.Sequential(model.memory_attention)
    assert model_config(model) == config
    train = as_class(model, SAM2Train, num_correction_pt_per_frame=1)
    assert train.memory_attention is model.memory_attention
    assert stage_of(train).config == config
    assert model_config(train)["_target_"] == "training.model.sam2.SAM2Train"
    assert model_config(train)["num_correction_pt_per_frame"] == 1
    assert model_config(train)["memory_attention"] == config["memory_attention"]
    assert model_config(as_class(train, SAM2VideoPredictor)) == config


def test_the_compiled_predictor_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    model = build_embedded(SAM2VideoPredictorVOS)
    config = model_config(model)
    assert config["_target_"].endswith("SAM2VideoPredictorVOS")
    assert type(build_from_config(config, meta=True)) is SAM2VideoPredictorVOS
