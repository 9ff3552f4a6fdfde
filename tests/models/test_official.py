from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from sam2.build_sam import build_sam2_video_predictor
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from threads import at_once
from torch import Tensor
from training.model.sam2 import SAM2Train

from qsam2_ao.errors import CheckpointError, QSAM2Error
from qsam2_ao.models.config import model_config
from qsam2_ao.models.embedded import EMBEDDED_CONFIG, build_embedded
from qsam2_ao.models.official import OFFICIAL, build_official, load_official_state

# An official-style config with an official-style checkpoint, at the size of the embedded model.
SMALL = str(EMBEDDED_CONFIG)


class MyPredictor(SAM2VideoPredictor):
    pass


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return build_embedded(seed=7).state_dict()


@pytest.fixture
def checkpoint(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"model": state}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_short_names() -> None:
    assert len(OFFICIAL) == 8
    assert OFFICIAL["sam2.1-b+"] == "configs/sam2.1/sam2.1_hiera_b+.yaml"
    assert OFFICIAL["sam2-t"] == "configs/sam2/sam2_hiera_t.yaml"


@pytest.mark.slow
def test_an_official_model_with_its_checkpoint(tmp_path: Path) -> None:
    model = build_official("sam2.1-t")
    assert type(model) is SAM2VideoPredictor
    assert not model.training
    assert model.image_size == 1024
    assert model.fill_hole_area == 8
    torch.save({"model": model.state_dict()}, tmp_path / "tiny.pt")
    other = build_official(OFFICIAL["sam2.1-t"], tmp_path / "tiny.pt", model_class=SAM2Base, image_size=512)
    assert type(other) is SAM2Base
    assert other.sam_image_embedding_size == 32
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
    with pytest.raises(CheckpointError, match=r"tiny\.pt is not a checkpoint of this model"):
        build_official("sam2.1-s", tmp_path / "tiny.pt")


@pytest.mark.slow
def test_versions_are_told_apart(tmp_path: Path) -> None:
    torch.save({"model": build_official("sam2-t").state_dict()}, tmp_path / "two.pt")
    with pytest.raises(CheckpointError, match=r"two\.pt .* it holds sam2-t, and sam2\.1-t was named; name sam2-t"):
        build_official("sam2.1-t", tmp_path / "two.pt")
    model = build_official(checkpoint=tmp_path / "two.pt")
    assert model.no_obj_embed_spatial is None
    assert not model.add_tpos_enc_to_obj_ptrs


@pytest.mark.parametrize("model_class", [None, SAM2Base, SAM2Train, MyPredictor])
def test_any_class_and_a_config_file_of_ones_own(checkpoint: Path, state: dict[str, Tensor], model_class: Any) -> None:
    model = build_official(SMALL, checkpoint, model_class=model_class)
    assert type(model).__name__ == (model_class or SAM2VideoPredictor).__name__
    assert not model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_input_size_and_hydra_state(checkpoint: Path) -> None:
    before = GlobalHydra.instance().hydra
    model = build_official(SMALL, checkpoint, image_size=160)
    assert model.image_size == 160
    assert model.sam_prompt_encoder.mask_input_size == (40, 40)
    assert GlobalHydra.instance().hydra is before
    with pytest.raises(QSAM2Error, match="multiple of 32, got 100"):
        build_official(SMALL, image_size=100)
    assert GlobalHydra.instance().hydra is before


def test_other_programs_and_threads_keep_their_hydra(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("answer: 42\n")
    state = GlobalHydra.instance()
    before, state.hydra = state.hydra, None
    try:
        initialize_config_dir(str(tmp_path), version_base="1.2")

        def mine() -> set[int]:
            return {compose("mine").answer for _ in range(20)}

        def size(pixels: int) -> set[int]:
            return {build_official(SMALL, image_size=pixels).image_size for _ in range(3)}

        assert at_once(mine, partial(size, 96), partial(size, 160)) == [{42}, {96}, {160}]
        assert compose("mine").answer == 42
    finally:
        state.hydra = before


def test_equals_what_sam2_builds() -> None:
    theirs, ours = build_sam2_video_predictor(OFFICIAL["sam2.1-t"], device="meta"), build_official("sam2.1-t")
    assert model_config(ours) == model_config(theirs)


@pytest.mark.parametrize("name", ["sam3-t", "configs/none.yaml", "sam2.1", ""])
def test_unknown_names(name: str) -> None:
    with pytest.raises(QSAM2Error, match=r"unknown model .*sam2\.1-t"):
        build_official(name)


# --- checkpoint files


def test_an_absent_file_is_named_before_anything_is_built() -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pt: no such file"):
        build_official("sam2.1-l", "gone.pt")


def test_the_config_is_chosen_by_the_checkpoint(checkpoint: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    model = build_official(checkpoint=checkpoint)
    assert model.image_size == 96
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(QSAM2Error, match="name a model or a checkpoint"):
        build_official()
    other = {name: value for name, value in state.items() if ".blocks.6." not in name}
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="is of a SAM2 of 32 channels and 6 blocks, and no config is known"):
        build_official(checkpoint=tmp_path / "other.pt")


@pytest.mark.parametrize("given", ["sam2.1-t", "configs/sam2/sam2_hiera_t.yaml"])
def test_another_models_weights_are_refused_by_name_before_it_is_built(checkpoint: Path, given: str) -> None:
    with pytest.raises(CheckpointError, match=rf"it holds .*qsam2_embedded\.yaml, and {re.escape(given)} was named"):
        build_official(given, checkpoint)


def test_weights_in_half_precision_and_in_inference_mode(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({name: value.bfloat16() for name, value in state.items()}, tmp_path / "half.pt")
    with torch.inference_mode():
        model = build_official(SMALL, tmp_path / "half.pt")
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert not value.is_inference()
        assert torch.equal(value, state[name].bfloat16().float())


def test_layers_of_ones_own_in_a_checkpoint(state: dict[str, Tensor]) -> None:
    wrong = {**state, "head.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match=r"1 unknown, first head\.weight; .* layers that you added"):
        load_official_state(build_embedded(), wrong, "some.pt")
    ints = {**state, "no_mem_embed": state["no_mem_embed"].int()}
    with pytest.raises(CheckpointError, match="no_mem_embed holds int32 and no weights in float"):
        load_official_state(build_embedded(), ints, "some.pt")


def test_tensors_that_do_not_fit_are_named(state: dict[str, Tensor]) -> None:
    model = build_embedded()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrong: dict[str, Any] = dict(state)
    del wrong["no_mem_embed"]
    wrong["extra.weight"] = torch.zeros(1)
    wrong["maskmem_tpos_enc"] = torch.zeros(3)
    wrong["no_mem_pos_enc"] = "text"
    with pytest.raises(CheckpointError) as caught:
        load_official_state(model, wrong, "some.pt")
    message = str(caught.value)
    assert message.startswith("some.pt is not a checkpoint of this model")
    assert "1 missing, first no_mem_embed" in message
    assert "1 unknown, first extra.weight" in message
    assert "maskmem_tpos_enc has shape (3,) instead of (7, 1, 1, 32)" in message
    assert "no_mem_pos_enc has shape ()" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
