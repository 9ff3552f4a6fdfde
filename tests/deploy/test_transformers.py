"""A quantized model inside one of transformers: the same numbers, and files that the library reads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qsam2_ao import build_official, convert_qsam2
from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.deploy.transformers import to_transformers
from qsam2_ao.errors import CheckpointError, QSAM2Error
from qsam2_ao.models.embedded import load_embedded

transformers = pytest.importorskip("transformers")
SIDE = 128
SETTINGS: dict[str, Any] = {
    "vision_config": {
        "backbone_config": {"model_type": "sam2_hiera_det_model", "hidden_size": 96, "image_size": [SIDE, SIDE]},
        "backbone_feature_sizes": [[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
    },
    "image_size": SIDE,
    "prompt_encoder_config": {"image_size": SIDE},
    "memory_attention_rope_feat_sizes": [SIDE // 16] * 2,
}


def fresh() -> Any:
    torch.manual_seed(0)
    model = transformers.Sam2VideoModel(transformers.Sam2VideoConfig(**SETTINGS)).eval()
    for parameter in model.parameters():  # the library starts many at zero, which would hide a mistake
        torch.nn.init.normal_(parameter, std=0.05)
    matrix = model.prompt_encoder.shared_embedding.positional_embedding
    matrix.data.copy_(model.shared_image_embedding.positional_embedding)
    return model


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("float")
    fresh().save_pretrained(folder)
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return convert_qsam2(build_official(checkpoint=folder), "w4a8", [picture], vrc=None, progress=False)


def encoded(model: Any, image: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        if hasattr(model, "vision_encoder"):
            return sorted(model.vision_encoder(image).fpn_hidden_states, key=lambda level: -level.shape[-1])
        return model.image_encoder(image)["backbone_fpn"]


def tracked(model: Any, image: torch.Tensor) -> torch.Tensor:
    """Mask logits of the second frame of a clip, after a click on the first."""
    session = transformers.models.sam2_video.modeling_sam2_video.Sam2VideoInferenceSession(
        video=torch.cat([image, image.flip(-1)]), video_height=SIDE, video_width=SIDE, dtype=torch.float32
    )
    index = session.obj_id_to_idx(1)
    clicks = {
        "point_coords": torch.full((1, 1, 1, 2), SIDE / 2),
        "point_labels": torch.ones(1, 1, 1, dtype=torch.int32),
    }
    session.add_point_inputs(index, 0, clicks)
    session.obj_with_new_inputs = [1]
    with torch.no_grad():
        model(inference_session=session, frame_idx=0)
        return model(inference_session=session, frame_idx=1).pred_masks


def test_packed_weights_keep_the_librarys_names_and_its_files(quantized: Any, tmp_path: Path) -> None:
    theirs = fresh()
    names = set(theirs.state_dict())
    float_weights = theirs.state_dict()["vision_encoder.backbone.blocks.0.attn.qkv.weight"].clone()
    model = to_transformers(quantized, theirs)
    assert model is theirs
    state = model.state_dict()
    assert names <= state.keys()
    assert all(".input_quantizer." in name for name in state.keys() - names)
    weight = state["vision_encoder.backbone.blocks.0.attn.qkv.weight"]
    own = quantized.state_dict()["image_encoder.trunk.blocks.0.attn.qkv.weight"]
    assert isinstance(weight, PackedIntxTensor)
    assert torch.equal(weight.dequantize(), own.dequantize())
    assert not torch.equal(weight.dequantize(), float_weights)
    image = torch.randn(1, 3, SIDE, SIDE)
    ours, found = encoded(quantized, image), encoded(model, image)
    assert all(torch.equal(a, b) for a, b in zip(ours, found, strict=True))
    masks = tracked(model, image)
    assert torch.isfinite(masks).all()

    model.save_pretrained(tmp_path / "packed")
    size = (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert size < 0.25 * sum(value.nbytes for value in fresh().state_dict().values())
    again, report = transformers.Sam2VideoModel.from_pretrained(tmp_path / "packed", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(found, encoded(again.eval(), image), strict=True))
    assert torch.equal(masks, tracked(again, image))
    again.save_pretrained(tmp_path / "again")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("packed", "again")]
    assert files[0] == files[1]


@pytest.mark.parametrize("gone", ["weight_codes", "bias"])
def test_a_file_without_a_packed_tensor_is_refused(quantized: Any, tmp_path: Path, gone: str) -> None:
    to_transformers(quantized, fresh()).save_pretrained(tmp_path)
    file, name = tmp_path / "model.safetensors", f"vision_encoder.backbone.blocks.0.attn.qkv.{gone}"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{name} is missing in the model's file"):
        transformers.Sam2VideoModel.from_pretrained(tmp_path)


def test_models_that_do_not_belong_together_are_refused(quantized: Any) -> None:
    with pytest.raises(QSAM2Error, match="has no packed weights; call convert_qsam2 first"):
        to_transformers(load_embedded(), fresh())
    picture = np.zeros((96, 96, 3), np.uint8)
    small = convert_qsam2(load_embedded(), "w4a8", [picture], vrc=None, progress=False)
    with pytest.raises(QSAM2Error, match=r"in the model of transformers, and|and the quantized one has no"):
        to_transformers(small, fresh())
    model = to_transformers(quantized, fresh())
    with pytest.raises(QSAM2Error, match="quantized already"):
        to_transformers(quantized, model)


def test_weights_go_where_the_librarys_are(quantized: Any) -> None:
    model = to_transformers(quantized, fresh().to("meta"))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision(quantized: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    image = torch.randn(1, 3, SIDE, SIDE)
    full = to_transformers(quantized, fresh())
    full.save_pretrained(tmp_path)
    expected = encoded(full, image)
    put = to_transformers(quantized, fresh().to(dtype))
    loaded = transformers.Sam2VideoModel.from_pretrained(tmp_path, dtype=dtype)
    for model in (put, loaded.eval()):
        for mine, theirs in zip(encoded(model, image.to(dtype)), expected, strict=True):
            assert mine.dtype == dtype
            assert (mine.float() - theirs).norm() < 0.05 * theirs.norm()
