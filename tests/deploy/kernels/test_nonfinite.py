"""NaN and infinity come out of every target as they come out of the packed model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam2_runs import images
from torch import Tensor

from qsam2_ao import compile_qsam2, convert_qsam2, load_embedded, load_qsam2, lower_float, save_qsam2
from qsam2_ao.deploy.targets import get_target
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.native import why_no_kernels
from qsam2_ao.predictors import predictor_state
from qsam2_ao.stage import stage_of

pytestmark = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "image_encoder": [(2, 3, 96, 96)],
    "memory_attention": [(36, 2, 64), (80, 2, 32), (36, 2, 64), (80, 2, 32)],
    "memory_encoder": [(2, 64, 6, 6), (2, 1, 96, 96)],
    "sam_mask_decoder.transformer": [(2, 64, 6, 6), (2, 64, 6, 6), (2, 7, 64)],
    "sam_mask_decoder.iou_prediction_head": [(2, 64)],
    "obj_ptr_proj": [(2, 64)],
}
INTEGERS = ("int8", "onednn")
"""The targets that multiply codes; one of them is not on every CPU."""
CASES = [(part, index) for part, shapes in SHAPES.items() for index in range(len(shapes))]


@pytest.fixture(scope="module")
def models(packed_file: Path, weight_only: Path) -> dict[str, Any]:
    integers = [target for target in INTEGERS if get_target(target).why_not(torch.device("cpu")) is None]
    found = {target: load_qsam2(packed_file, target=target) for target in ("packed", *integers)}
    found |= {"weight-only": load_qsam2(weight_only), "int4": load_qsam2(weight_only, target="int4")}
    for target in (*integers, "int4"):
        assert target in {taken.target for taken in stage_of(found[target]).targets.values()}
    return found


@pytest.fixture(scope="module")
def weight_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weight_only") / "w4a16.safetensors"
    save_qsam2(convert_qsam2(build_embedded(), "w4a16", progress=False), path)
    return path


@pytest.fixture(scope="module")
def floats() -> dict[str, Any]:
    return {"packed": load_embedded(), "float": lower_float(load_embedded())}


def run(model: Any, part: str, index: int, bad: float) -> list[Tensor]:
    """The outputs of a part with ``bad`` in one value of the second sample of one input."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator) for shape in SHAPES[part]]
    batch = 1 if part == "memory_attention" else 0
    sample = inputs[index].select(batch, 1)
    sample[tuple(min(1, size - 1) for size in sample.shape)] = bad
    with torch.inference_mode():
        pointers = {"num_obj_ptr_tokens": 8} if part == "memory_attention" else {}
        out = model.get_submodule(part)(*inputs, **pointers)
    outputs = out.get("backbone_fpn", out.get("vision_features")) if isinstance(out, dict) else out
    if isinstance(out, dict):
        assert all(position.isfinite().all() for position in out["vision_pos_enc"])
    return [x.movedim(batch, 0) for x in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("part", "index"), CASES)
def test_a_sample_is_lost_in_every_target_or_in_none(
    models: dict[str, Any], part: str, index: int, bad: float, target: str
) -> None:
    if (missing := get_target(target).why_not(torch.device("cpu"))) is not None:
        pytest.skip(missing)
    expected = run(models["packed"], part, index, bad)
    assert all(sample.isfinite().all() for sample, _ in expected)
    lost = any(not sample.isfinite().all() for _, sample in expected)
    assert lost or not math.isnan(bad)
    for out in run(models[target], part, index, bad):
        assert out[0].isfinite().all()
        assert bool(out[1].isnan().all()) == lost
        assert bool(out[1].isfinite().all()) != lost


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("part", "index"), CASES)
def test_int4_loses_what_the_packed_weights_lose(models: dict[str, Any], part: str, index: int, bad: float) -> None:
    """Inputs are in float there: what does not see the bad value stays."""
    mine, theirs = (run(models[target], part, index, bad) for target in ("int4", "weight-only"))
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("part", "index"), CASES)
def test_a_lowered_float_model_loses_what_the_float_model_loses(
    floats: dict[str, Any], part: str, index: int, bad: float
) -> None:
    for mine, theirs in zip(
        run(floats["float"], part, index, bad), run(floats["packed"], part, index, bad), strict=True
    ):
        assert torch.equal(mine.isfinite(), theirs.isfinite())


@pytest.mark.slow
def test_compiled_parts_lose_the_same(packed_file: Path) -> None:
    model = compile_qsam2(load_qsam2(packed_file, target="int8"), backend="aot_eager")
    for part in ("memory_attention", "sam_mask_decoder.iou_prediction_head"):
        for out in run(model, part, 0, math.nan):
            assert out[0].isfinite().all()
            assert out[1].isnan().all()


def test_a_damaged_frame_has_no_mask(models: dict[str, Any]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    for target in ("packed", "int8"):
        state = predictor_state(models[target], frames)
        state["images"][1, 0, 3, 3] = math.nan
        models[target].add_new_mask(state, 0, 1, np.ones((48, 64), bool))
        logits = [found for *_, found in models[target].propagate_in_video(state)]
        assert (logits[0] > 0).any()
        assert not (logits[1] > 0).any(), target


def test_finite_images_are_looked_at_and_left(models: dict[str, Any]) -> None:
    """The largest finite numbers are no infinity."""
    image = images(1, 96) * 1e30
    with torch.inference_mode():
        assert all(x.isfinite().all() for x in models["int8"].image_encoder(image)["backbone_fpn"])
