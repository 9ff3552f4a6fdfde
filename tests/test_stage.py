from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao import build_embedded, convert_qsam2, load_qsam2, prepare_qsam2
from qsam2_ao.models.config import as_class, model_config
from qsam2_ao.stage import ModelStage, set_stage, stage_of

REMAKES: list[Callable[[SAM2Base], SAM2Base]] = [
    copy.deepcopy,
    lambda model: pickle.loads(pickle.dumps(model)),
    lambda model: as_class(model, SAM2Base),
    lambda model: as_class(as_class(model, SAM2Base), SAM2VideoPredictor),
]


@pytest.fixture(scope="module")
def prepared() -> SAM2Base:
    return prepare_qsam2(build_embedded(SAM2VideoPredictor), {"memory_encoder": "w4a16"}, vrc=None, progress=False)


def test_a_model_goes_from_float_to_prepared_to_converted_to_deployed(prepared: SAM2Base, packed_file: Path) -> None:
    model = build_embedded()
    assert (stage_of(model), stage_of(model).name) == (ModelStage(), "float")
    assert stage_of(prepared).name == "prepared"
    assert stage_of(prepared).config == model_config(build_embedded(SAM2VideoPredictor))
    assert not stage_of(prepared).layers
    converted = convert_qsam2(prepared)
    assert stage_of(converted).name == "converted"
    assert replace(stage_of(converted), layers=()) == stage_of(prepared)
    assert stage_of(prepared).name == "prepared"
    deployed = stage_of(load_qsam2(packed_file))
    assert deployed.name == "deployed"
    assert deployed.targets.keys() == {record.name for record in deployed.layers}


@pytest.mark.parametrize("remake", REMAKES)
def test_copies_and_other_classes_of_a_model_have_its_stage(
    prepared: SAM2Base, packed_file: Path, remake: Callable[[SAM2Base], SAM2Base]
) -> None:
    for model in (prepared, convert_qsam2(prepared), load_qsam2(packed_file)):
        other = remake(model)
        assert stage_of(other) == stage_of(model)
        set_stage(other, ModelStage(info={}))
        assert stage_of(model) != stage_of(other), "each has its own"


def test_a_stage_is_replaced_not_changed(prepared: SAM2Base) -> None:
    with pytest.raises(FrozenInstanceError):
        stage_of(prepared).info = None  # type: ignore[misc]
    assert prepared.qsam2_info["vrc"] is None, "as scripts read it"
