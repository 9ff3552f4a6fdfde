"""Attention to memories first, values after: the same numbers, and only where one head widens what it attends to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor, nn

from qsam2_ao import coverage_report, load_embedded, load_qsam2, lower_float
from qsam2_ao.deploy.kernels.attention import Attention
from qsam2_ao.deploy.kernels.codes import CodeGrid
from qsam2_ao.deploy.kernels.linear import weight_centre
from qsam2_ao.deploy.kernels.values import CodeValues, ValueProjection
from qsam2_ao.native import load_kernels, why_no_kernels

pytestmark = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
V_PROJ = "memory_attention.layers.0.cross_attn_image.v_proj"


def inputs(batch: int, *, memory: int = 32, pointers: int = 8) -> dict[str, Tensor | int]:
    """Of memory attention on a grid of 6 x 6, with two memories and object pointers."""
    generator = torch.Generator().manual_seed(batch)
    shapes = {"curr": 64, "curr_pos": 64, "memory": memory, "memory_pos": memory}
    tokens = {"curr": 36, "curr_pos": 36, "memory": 72 + pointers, "memory_pos": 72 + pointers}
    tensors = {name: torch.randn(tokens[name], batch, width, generator=generator) for name, width in shapes.items()}
    return {**tensors, "num_obj_ptr_tokens": pointers}


def error(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.double() - expected.double()).square().mean()
    return float((difference / expected.double().square().mean()).sqrt())


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_sums_of_codes_projected_are_the_attended_values(packed_file: Path, bias: bool) -> None:
    """Against float64, for codes at the ends of the grid as well."""
    load_kernels()
    layer = load_qsam2(packed_file).get_submodule(V_PROJ)
    packed = layer.weight
    layer.bias = nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(2))) if bias else None
    grid = CodeGrid(0.037, 119.0, 255)
    codes = torch.randint(0, 256, (2, 300, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    codes[:, 0], codes[:, 1] = 0, 255
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(2, 1, n, 64, generator=generator).bfloat16() for n in (50, 300))
    projection = ValueProjection(layer, packed, grid)
    assert torch.equal(projection.weight.double(), packed.unpack().double() - weight_centre(packed)[0])
    steps = CodeValues(grid)(codes)
    assert torch.equal(steps.double(), codes.double() - 119), "exact in bfloat16"

    out = projection(Attention()(q, k, steps.unsqueeze(1)).squeeze(1))
    values = (codes.double() - 119) * 0.037 @ packed.dequantize(torch.float32).double().T
    values = values + (0 if layer.bias is None else layer.bias.double())
    exact = F.scaled_dot_product_attention(q.double(), k.double(), values.unsqueeze(1)).squeeze(1)
    assert error(out, exact) < 6e-3
    assert out.dtype == torch.float32


@torch.inference_mode()
def test_sums_of_codes_are_exact_under_float16_autocast(packed_file: Path) -> None:
    layer = load_qsam2(packed_file).get_submodule(V_PROJ)
    projection = ValueProjection(layer, layer.weight, CodeGrid(1.0, 0.0, 255))
    x = torch.full((4, layer.weight.shape[1]), 255.0) * projection.weight[0].sign().float()
    with torch.autocast("cpu", torch.float16):
        found = projection(x)
    assert torch.equal(found, projection(x))
    assert found.isfinite().all()


@pytest.mark.parametrize("batch", [1, 3])
@torch.inference_mode()
def test_memory_attention_attends_to_the_codes_of_memories(packed_file: Path, batch: int) -> None:
    packed, lowered = (load_qsam2(packed_file, target=target) for target in ("packed", "int8"))
    after = [name for name, m in lowered.memory_attention.named_modules() if isinstance(m, ValueProjection)]
    assert after == [f"layers.{i}.cross_attn_image.v_proj" for i in range(len(packed.memory_attention.layers))]
    x = inputs(batch)
    assert error(lowered.memory_attention(**x), packed.memory_attention(**x)) < 0.03
    rows = {row.name: row.target for row in coverage_report(lowered).layers}
    assert rows[V_PROJ] == "int8"


@torch.inference_mode()
def test_memories_that_are_no_rows(packed_file: Path) -> None:
    """SAM2 passes an image's memory as a view with its channels first."""
    model = load_qsam2(packed_file, target="int8").memory_attention
    x = inputs(2, pointers=0)
    expected = model(**x)
    strided = {name: x[name].permute(2, 1, 0).contiguous().permute(2, 1, 0) for name in ("memory", "memory_pos")}
    assert torch.equal(model(**{**x, **strided}), expected)
    lowered = lower_float(load_embedded()).memory_attention
    assert torch.equal(lowered(**{**x, **strided}), lowered(**x))


@torch.inference_mode()
def test_float_layers_between_the_kernels_run_under_any_autocast_and_after_any_cast() -> None:
    model = lower_float(load_embedded())
    x, images = inputs(2), torch.randn(1, 3, 96, 96)
    expected = model.memory_attention(**x), model.forward_image(images)["vision_features"]
    with torch.autocast("cpu", torch.float16):
        assert error(model.memory_attention(**x), expected[0]) < 0.02
    for cast in (model.float, model.half, model.double):
        cast()
        assert torch.equal(model.memory_attention(**x), expected[0])
        assert torch.equal(model.image_encoder(images)["vision_features"], expected[1])


def rotary(heads: int, memory: int) -> RoPEAttention:
    return RoPEAttention(
        embedding_dim=64, num_heads=heads, downsample_rate=1, dropout=0.1, kv_in_dim=memory, rope_k_repeat=True
    )


@pytest.mark.parametrize(
    ("heads", "memory", "first"), [(1, 32, True), (2, 32, False), (4, 32, False), (1, 64, False), (1, 96, False)]
)
@torch.inference_mode()
def test_only_one_head_that_widens_attends_first(heads: int, memory: int, first: bool) -> None:
    torch.manual_seed(0)
    model = load_embedded()
    for layer in model.memory_attention.layers:
        layer.cross_attn_image = rotary(heads, memory).eval()
    x = inputs(2, memory=memory)
    expected = model.memory_attention(**x)
    lowered = lower_float(model).memory_attention
    assert ("unsqueeze" in lowered.code) == first
    assert error(lowered(**x), expected) < 0.02


@torch.inference_mode()
def test_a_value_layer_without_bias(packed_file: Path) -> None:
    model = load_embedded()
    for layer in model.memory_attention.layers:
        layer.cross_attn_image.v_proj = nn.Linear(32, 64, bias=False)
    x = inputs(1)
    expected = model.memory_attention(**x)
    lowered = lower_float(model).memory_attention
    assert "unsqueeze" in lowered.code
    assert error(lowered(**x), expected) < 0.02


@torch.no_grad()
def test_a_model_in_float64_runs_on_the_kernels(packed_file: Path) -> None:
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    found = load_qsam2(packed_file, target="int8")
    expected = found.image_encoder(image)["vision_features"]
    wide = found.double().image_encoder(image.double())["vision_features"]
    assert wide.dtype == torch.float64
    assert (wide - expected).norm() < 0.05 * expected.norm()
