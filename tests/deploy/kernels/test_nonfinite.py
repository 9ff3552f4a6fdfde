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

from qsam2_ao import compile_qsam2, load_embedded, load_qsam2, lower_float
from qsam2_ao.native import why_no_kernels
from qsam2_ao.predictors import predictor_state

pytestmark = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "image_encoder": [(2, 3, 96, 96)],
    "memory_attention": [(36, 2, 64), (80, 2, 32), (36, 2, 64), (80, 2, 32)],
    "memory_encoder": [(2, 64, 6, 6), (2, 1, 96, 96)],
    "sam_mask_decoder.transformer": [(2, 64, 6, 6), (2, 64, 6, 6), (2, 7, 64)],
    "sam_mask_decoder.iou_prediction_head": [(2, 64)],
    "obj_ptr_proj": [(2, 64)],
}
CASES = [(part, index) for part, shapes in SHAPES.items() for index in range(len(shapes))]


@pytest.fixture(scope="module")
def models(packed_file: Path) -> dict[str, Any]:
    return {target: load_qsam2(packed_file, target=target) for target in ("packed", "int8", "int4")}


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


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("part", "index"), CASES)
def test_a_sample_is_lost_in_every_target_or_in_none(models: dict[str, Any], part: str, index: int, bad: float) -> None:
    expected = run(models["packed"], part, index, bad)
    assert all(sample.isfinite().all() for sample, _ in expected)
    lost = any(not sample.isfinite().all() for _, sample in expected)
    assert lost or not math.isnan(bad)
    for target in ("int8", "int4"):
        for out in run(models[target], part, index, bad):
            assert out[0].isfinite().all(), target
            assert bool(out[1].isnan().all()) == lost or target == "int4", target
            assert bool(out[1].isfinite().all()) != lost, target


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
