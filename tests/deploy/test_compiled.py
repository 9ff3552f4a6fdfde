"""The parts of a loaded model under torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from sam2_runs import images, run_video
from shallow import SHALLOW
from torch import nn
from torch._dynamo.utils import counters
from torch.ao.quantization import QConfigMapping

from qsam2_ao import (
    build_embedded,
    compile_qsam2,
    convert_qsam2,
    load_qsam2,
    lsc_qconfig,
    save_qsam2,
    use_compact_memories,
)
from qsam2_ao.deploy.compiled import _of_fixed_size
from qsam2_ao.errors import UnsupportedLayerError
from qsam2_ao.graph import find_parts
from qsam2_ao.native import why_no_kernels


def one_of_each_kind(model: SAM2Base) -> QConfigMapping:
    """Quantizes the first layer of each kind in every part: inductor writes and compiles kernels for each."""
    mapping = QConfigMapping()
    for part in find_parts(model):
        kinds = set()
        for name, layer in model.get_submodule(part.path).named_modules(prefix=part.path):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                kind = (type(layer), getattr(layer, "kernel_size", None), getattr(layer, "groups", None))
                if kind not in kinds:
                    mapping.set_module_name(name, lsc_qconfig(4, 8))
                kinds.add(kind)
    return mapping


def packed(recipe: str | QConfigMapping, path: Path) -> Path:
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    save_qsam2(
        convert_qsam2(build_embedded(SAM2VideoPredictor, **SHALLOW), recipe, [image], vrc=None, progress=False), path
    )
    return path


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed("w4a8", tmp_path_factory.mktemp("compiled") / "small-w4a8.safetensors")


@pytest.fixture(scope="module")
def once_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(
        one_of_each_kind(build_embedded(SAM2VideoPredictor, **SHALLOW)),
        tmp_path_factory.mktemp("compiled") / "once.safetensors",
    )


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def partly() -> SAM2Base:
    return convert_qsam2(build_embedded(SAM2VideoPredictor), {"memory_attention": "w4a16"}, progress=False)


@pytest.mark.slow
def test_every_part_compiles_without_a_graph_break(once_file: Path, tmp_path: Path) -> None:
    model = load_qsam2(once_file)
    batch = images(1, 96)
    with torch.no_grad():
        expected = run_video(model, batch, frames=2)
        compile_qsam2(model)
        actual = run_video(model, batch, frames=2)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] > 5
    for ours, theirs in zip(actual, expected, strict=True):
        # Fused kernels round otherwise, and a code of an input may fall on the other side of a step.
        error = (ours - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12)
        assert float(error) < 1e-2
    save_qsam2(model, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").stat().st_size == once_file.stat().st_size


def attend(model: SAM2Base, frames: int, pointers: int, objects: int) -> None:
    tokens, dim = (model.image_size // 16) ** 2, model.hidden_dim
    memory = torch.zeros(frames * tokens + pointers * 4, objects, model.mem_dim)
    image = torch.zeros(tokens, objects, dim)
    model.memory_attention(
        curr=[image], curr_pos=[image], memory=memory, memory_pos=memory, num_obj_ptr_tokens=pointers * 4
    )


def decode(model: SAM2Base, points: int, objects: int) -> None:
    side, dim = model.image_size // 16, model.hidden_dim
    model._forward_sam_heads(
        torch.zeros(objects, dim, side, side),
        point_inputs={
            "point_coords": torch.zeros(objects, points, 2),
            "point_labels": torch.ones(objects, points, dtype=torch.int32),
        },
        high_res_features=[torch.zeros(objects, dim // 8 * k, side * 4 // k, side * 4 // k) for k in (1, 2)],
        multimask_output=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "file", "warmed", "later"),
    # The kernels take several layers at once where all of them are quantized; packed ones are each for itself.
    [("packed", "once_file", (2,), (3,)), ("int8", "small_file", (1, 2), (1, 3))],
)
@torch.no_grad()
def test_nothing_compiles_again_after_warm_up(
    request: pytest.FixtureRequest, target: str, file: str, warmed: tuple[int, ...], later: tuple[int, ...]
) -> None:
    if target == "int8" and (reason := why_no_kernels()) is not None:
        pytest.skip(reason)
    model = compile_qsam2(load_qsam2(request.getfixturevalue(file), target=target), backend="aot_eager")
    for objects in warmed:
        for frames in (1, 2):
            attend(model, frames, frames, objects)
        for points in (1, 2):
            decode(model, points, objects)
    warm = counters["stats"]["unique_graphs"]
    assert warm > 5
    for objects in later:
        for frames, pointers in ((1, 5), (3, 16), (7, 2)):
            attend(model, frames, pointers, objects)
        for points in (3, 6):
            decode(model, points, objects)
    assert counters["stats"]["unique_graphs"] == warm
    assert not counters["graph_break"]


@pytest.mark.slow
def test_the_encoder_compiles_for_a_second_size_as_for_the_first(once_file: Path) -> None:
    model, compiled = (load_qsam2(once_file) for _ in range(2))
    compile_qsam2(compiled, backend="eager")
    with torch.inference_mode():
        name = next(iter(model.image_encoder.graph.nodes)).target
        for number, side in enumerate((32, 64)):  # with symbols for the second, tracing takes minutes
            x = torch.randn(1, 3, side, side)
            found = compiled.image_encoder(**{name: x})["vision_features"]
            torch.testing.assert_close(found, model.image_encoder(x)["vision_features"])
            assert counters["stats"]["unique_graphs"] == number + 1


@pytest.mark.slow
@torch.no_grad()
def test_encoders_compile_once(once_file: Path) -> None:
    """Though encodings of positions keep what they computed."""
    model = compile_qsam2(load_qsam2(once_file), backend="eager")
    image, mask = images(1, 96), torch.zeros(1, 1, 96, 96)
    graphs = []
    for _ in range(2):
        features = model.forward_image(image)["backbone_fpn"][-1]
        model.memory_encoder(features, mask, skip_mask_sigmoid=True)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 1


def test_parts_that_were_not_quantized_stay_as_they_are(partly: SAM2Base) -> None:
    compile_qsam2(partly, backend="eager")
    compiled = {name for name, module in partly.named_modules() if module._compiled_call_impl is not None}
    assert "memory_attention" in compiled
    assert "image_encoder" not in compiled


def test_a_choice_of_frames_cannot_be_compiled(partly: SAM2Base) -> None:
    with pytest.raises(UnsupportedLayerError, match=r"memory_attention chooses its frames"):
        compile_qsam2(use_compact_memories(partly, frames=3), backend="eager")
    with pytest.raises(UnsupportedLayerError, match="memory attention is compiled"):
        use_compact_memories(compile_qsam2(use_compact_memories(partly), backend="eager"), frames=3)


def test_a_float_model_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="vos_optimized"):
        compile_qsam2(build_embedded())


@pytest.mark.slow
def test_more_sizes_than_torch_allows_by_itself() -> None:
    compiled = torch.compile(nn.AvgPool2d(2), backend="eager", fullgraph=True)
    for side in range(2, 14):
        assert _of_fixed_size(compiled, torch.ones(1, 1, side, side)).shape[-1] == side // 2
