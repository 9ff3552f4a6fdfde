"""Memory attention with scores in int8: off unless asked for, near to bfloat16, and the kernels' alone."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from threads import at_once

from qsam2_ao import load_embedded, load_qsam2, lower_float, use_int8_scores
from qsam2_ao.deploy.kernels.attention import Attention
from qsam2_ao.errors import UnsupportedLayerError
from qsam2_ao.native import why_no_kernels

needs_kernels = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
MODELS: dict[str, Callable[[Path], Any]] = {
    "int8": lambda file: load_qsam2(file, target="int8"),
    "float, lowered": lambda file: lower_float(load_embedded()),
}


@needs_kernels
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_scores_in_int8_are_near_those_in_bfloat16(name: str, packed_file: Path) -> None:
    model = MODELS[name](packed_file)
    generator = torch.Generator().manual_seed(0)
    shapes = {"curr": (36, 2, 64), "curr_pos": (36, 2, 64), "memory": (80, 2, 32), "memory_pos": (80, 2, 32)}
    x = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    def run(model: Any) -> torch.Tensor:
        return model.memory_attention(**x, num_obj_ptr_tokens=8)

    before = run(model)
    assert use_int8_scores(model) is model
    after = run(model)
    assert not torch.equal(after, before)
    assert float((after - before).square().mean().sqrt() / before.square().mean().sqrt()) < 0.02
    assert torch.equal(run(pickle.loads(pickle.dumps(model))), after)
    everywhere = {path for path, m in model.named_modules() if isinstance(m, Attention) and m.int8_scores}
    assert everywhere == {path for path, m in model.named_modules() if isinstance(m, Attention) and "memory" in path}


@needs_kernels
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_scores_in_int8_of_the_whole_image(name: str, packed_file: Path) -> None:
    model = MODELS[name](packed_file)
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))

    def run(model: Any) -> torch.Tensor:
        return model.image_encoder(image)["vision_features"]

    before = run(model)
    assert torch.equal(run(use_int8_scores(model)), before), "memory attention alone"
    after = run(use_int8_scores(model, image_encoder=True))
    assert not torch.equal(after, before)
    # A code of an input here and there falls on the other side of a step.
    assert float((after - before).square().mean().sqrt() / before.square().mean().sqrt()) < 0.1
    assert torch.equal(run(pickle.loads(pickle.dumps(model))), after)


@needs_kernels
@pytest.mark.parametrize("coded", [False, True], ids=["bfloat16", "int8 scores"])
def test_threads_that_share_a_memory_attention_do_not_meet(coded: bool, packed_file: Path) -> None:
    """Each with memories of a length of its own, and with threads of its own below it."""
    model: Any = load_qsam2(packed_file, target="int8")
    if coded:
        use_int8_scores(model)

    @torch.inference_mode()
    def attend(memories: int) -> torch.Tensor:
        torch.set_num_threads(1 + memories % 2)
        generator = torch.Generator().manual_seed(memories)
        shapes = {"curr": (36, 1, 64), "curr_pos": (36, 1, 64)}
        shapes |= dict.fromkeys(("memory", "memory_pos"), (36 * memories + 4, 1, 32))
        x = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return model.memory_attention(**x, num_obj_ptr_tokens=4)

    before = torch.get_num_threads()
    try:
        alone = [attend(memories) for memories in range(1, 5)]
    finally:
        torch.set_num_threads(before)

    def often(memories: int) -> list[torch.Tensor]:
        return [attend(memories) for _ in range(4)]

    for found, expected in zip(at_once(*(partial(often, n) for n in range(1, 5))), alone, strict=True):
        assert all(torch.equal(one, expected) for one in found)


def test_scores_stay_float_where_memory_attention_is_not_lowered(packed_file: Path) -> None:
    for model in (load_embedded(), load_qsam2(packed_file)):
        with pytest.raises(UnsupportedLayerError, match="memory attention is not lowered to the int8 kernels"):
            use_int8_scores(model)


@needs_kernels
def test_no_scores_are_int8_where_one_part_is_not_lowered(packed_file: Path) -> None:
    model = load_qsam2(packed_file, target="int8")
    model.image_encoder = load_qsam2(packed_file).image_encoder
    with pytest.raises(UnsupportedLayerError, match="the image encoder is not lowered to the int8 kernels"):
        use_int8_scores(model, image_encoder=True)
    assert not any(getattr(module, "int8_scores", False) for module in model.modules())
