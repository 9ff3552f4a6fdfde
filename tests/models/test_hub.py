"""transformers' names of SAM2's tensors, and models that it saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor

from qsam2_ao import convert_qsam2, load_qsam2, save_qsam2
from qsam2_ao.errors import CheckpointError, QSAM2Error
from qsam2_ao.models.hub import official_names
from qsam2_ao.models.official import build_official
from qsam2_ao.models.sizes import MEMORY, recognise
from qsam2_ao.predictors import image_predictor, predictor_state
from qsam2_ao.stage import stage_of

TWICE = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
NAMES = Path(__file__).with_name("transformers_names.txt")


def shapes() -> dict[str, Tensor]:
    """The tensors of the library's Sam2VideoModel, without data."""
    lines = (line.split() for line in NAMES.read_text().splitlines())
    return {name: torch.empty([int(side) for side in shape], device="meta") for name, *shape in lines}


def test_the_map_is_exact() -> None:
    theirs = shapes()
    del theirs[TWICE[0]]  # the two copies can't be compared without data
    state = official_names(theirs, "here")
    expected = build_official("sam2.1-t").state_dict()
    assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in expected.items()}
    assert (len(shapes()), len(state)) == (469, 471)
    assert recognise(state) == "sam2.1-t"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("vision_encoder.backbone.blocks.3.mlp.proj_out.bias", "image_encoder.trunk.blocks.3.mlp.layers.1.bias"),
        ("vision_encoder.neck.convs.2.weight", "image_encoder.neck.convs.2.conv.weight"),
        ("mask_decoder.iou_prediction_head.layers.0.weight", "sam_mask_decoder.iou_prediction_head.layers.1.weight"),
        ("mask_decoder.iou_prediction_head.proj_out.weight", "sam_mask_decoder.iou_prediction_head.layers.2.weight"),
        ("mask_decoder.upscale_conv2.bias", "sam_mask_decoder.output_upscaling.3.bias"),
        ("prompt_encoder.mask_embed.layer_norm2.bias", "sam_prompt_encoder.mask_downscaling.4.bias"),
        ("memory_encoder.mask_downsampler.layers.2.layer_norm.bias", "memory_encoder.mask_downsampler.encoder.7.bias"),
        ("memory_encoder.mask_downsampler.final_conv.bias", "memory_encoder.mask_downsampler.encoder.12.bias"),
        ("memory_encoder.memory_fuser.layers.1.scale", "memory_encoder.fuser.layers.1.gamma"),
        ("memory_attention.layers.3.cross_attn_image.o_proj.bias",
         "memory_attention.layers.3.cross_attn_image.out_proj.bias"),
        ("object_pointer_proj.proj_in.bias", "obj_ptr_proj.layers.0.bias"),
    ],
)  # fmt: skip
def test_values_stay_with_their_names(theirs: str, ours: str) -> None:
    state = {name: torch.full((1,), float(i)) for i, name in enumerate(shapes()) if name not in TWICE}
    assert torch.equal(official_names(state, "here")[ours], state[theirs])


def test_points_are_rows_of_a_table() -> None:
    state = official_names({"prompt_encoder.point_embed.weight": torch.arange(8.0).reshape(4, 2)}, "here")
    rows = [state[f"sam_prompt_encoder.point_embeddings.{i}.weight"].tolist() for i in range(4)]
    assert rows == [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]
    assert official_names({"head.weight": torch.zeros(1)}, "here").keys() == {"head.weight"}


def test_position_encodings_that_differ_are_named(caplog: pytest.LogCaptureFixture) -> None:
    same = {name: torch.ones(2, 4) for name in TWICE}
    assert len(official_names(same, "here")) == 1
    assert not caplog.text
    for other in (torch.zeros(2, 4), torch.ones(2, 5)):
        (taken,) = official_names({TWICE[1]: other, TWICE[0]: same[TWICE[0]]}, "here").values()
        assert torch.equal(taken, same[TWICE[0]])
        assert "here: shared_image_embedding.positional_embedding and" in caplog.text
        caplog.clear()


# --- the image part alone, as Sam2Model has it


@pytest.fixture(scope="module")
def images_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from qsam2_ao.models.embedded import build_embedded

    memory = (*MEMORY, "maskmem_", "no_obj", "no_mem_pos", "mask_downsample", "obj_ptr")
    state = {name: value for name, value in build_embedded().state_dict().items() if not name.startswith(memory)}
    path = tmp_path_factory.mktemp("images") / "images.safetensors"
    save_file(state, path)
    return path


def test_weights_without_a_memory_segment_images_and_never_track(
    images_only: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_official(checkpoint=images_only)
    assert "cannot track" in caplog.text
    assert stage_of(model).images_only
    again = build_official(checkpoint=images_only)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    frames = [np.zeros((96, 96, 3), np.uint8)]
    quantized = convert_qsam2(model, {"memory_attention": "w4a16"}, progress=False)
    save_qsam2(quantized, tmp_path / "packed.safetensors")
    packed = load_qsam2(tmp_path / "packed.safetensors", model_class=SAM2VideoPredictor)
    for tracker in (model, packed):
        image_predictor(tracker).set_image(frames[0])
        with pytest.raises(QSAM2Error, match="the model cannot track"):
            predictor_state(tracker, frames)


# --- the library itself


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


SMALL = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 96,
            "image_size": [256, 256],
        },
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
    },
    "image_size": 256,
    "prompt_encoder_config": {"image_size": 256},
    "memory_attention_rope_feat_sizes": [16, 16],
}


def test_a_folder_of_the_library_equals_it_to_the_bit(transformers: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.Sam2VideoModel(transformers.Sam2VideoConfig(**SMALL)).eval()
    for parameter in theirs.parameters():  # the library starts many at zero, which would hide a mistake
        torch.nn.init.normal_(parameter, std=0.05)
    theirs.save_pretrained(tmp_path / "video")
    model: Any = build_official(checkpoint=tmp_path / "video")
    assert model.image_size == 256
    image = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        expected = theirs.vision_encoder(image).fpn_hidden_states
        actual = model.image_encoder(image)["backbone_fpn"]
    # From fine to coarse here, and there in the order that the neck makes them.
    assert len(expected) == len(actual) == 3
    by_size = sorted(expected, key=lambda level: -level.shape[-1])
    assert all(torch.equal(a, b) for a, b in zip(by_size, actual, strict=True))
    with pytest.raises(CheckpointError, match=r"it holds sam2\.1-t, and sam2\.1-s was named; name sam2\.1-t"):
        build_official("sam2.1-s", tmp_path / "video")


def test_the_image_model_of_the_library(transformers: Any, tmp_path: Path) -> None:
    theirs = transformers.Sam2Model(transformers.Sam2Config(vision_config=SMALL["vision_config"]))
    theirs.save_pretrained(tmp_path / "image")
    model: Any = build_official(checkpoint=tmp_path / "image")
    assert stage_of(model).images_only
    weight = theirs.mask_decoder.iou_prediction_head.proj_out.weight
    assert torch.equal(model.sam_mask_decoder.iou_prediction_head.layers[2].weight, weight)
