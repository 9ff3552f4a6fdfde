"""Rotary encoding on the kernels against SAM2's, for memories of several frames and pointers behind them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sam2.modeling.sam.transformer import RoPEAttention

from qsam2_ao import load_embedded, load_qsam2, lower_float
from qsam2_ao.deploy.kernels.positions import Rotary
from qsam2_ao.export.rope import RealRoPE, use_real_rope
from qsam2_ao.graph.leaves import AxialRoPE
from qsam2_ao.native import load_kernels, why_no_kernels

pytestmark = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))


def encoding(channels: int, heads: int = 1, *, repeat: bool = True) -> AxialRoPE:
    return AxialRoPE.of(RoPEAttention(channels * heads, heads, rope_k_repeat=repeat, feat_sizes=(4, 4)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("channels", "heads", "frames", "pointers"), [(64, 1, 3, 5), (20, 2, 1, 0), (4, 3, 2, 1)])
def test_turned_as_in_sam2(dtype: torch.dtype, channels: int, heads: int, frames: int, pointers: int) -> None:
    """At another grid than the encoding was built for, and with heads inside of the tokens."""
    load_kernels()
    rope = encoding(channels, heads)
    q, k = (torch.randn(2, n, heads, channels).to(dtype).transpose(1, 2) for n in (36, 36 * frames + pointers))
    found, expected = Rotary(rope)(q, k, pointers), rope(q.float(), k.float(), pointers)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.float(), theirs, rtol=2**-8, atol=1e-5)
    assert torch.equal(found[1][:, :, 36 * frames :], k[:, :, 36 * frames :].bfloat16())


def test_keys_that_are_no_whole_frames_are_refused() -> None:
    load_kernels()
    q, k = torch.randn(1, 1, 16, 8), torch.randn(1, 1, 40, 8)
    with pytest.raises(ValueError, match="without rope_k_repeat"):
        Rotary(encoding(8, repeat=False))(q, k)
    with pytest.raises(RuntimeError, match="cannot rotate 40 of"):
        Rotary(encoding(8))(q, k)


@torch.inference_mode()
def test_memory_attention_of_lowered_models_turns_on_the_kernels(packed_file: Path) -> None:
    """Exports, which hold no complex numbers, do not."""
    for model in (load_qsam2(packed_file, target="int8"), lower_float(load_embedded())):
        attentions = [a for layer in model.memory_attention.layers for a in (layer.self_attn, layer.cross_attn_image)]
        assert {type(attention.rope) for attention in attentions} == {Rotary}
        tokens = (model.image_size // 16) ** 2
        now, memory = torch.randn(tokens, 1, 64), torch.randn(2 * tokens + 4, 1, 32)
        x = {"curr": now, "curr_pos": now, "memory": memory, "memory_pos": memory, "num_obj_ptr_tokens": 4}
        expected = model.memory_attention(**x)
        use_real_rope(model)
        assert {type(attention.rope) for attention in attentions} == {RealRoPE}
        found = model.memory_attention(**x)
        assert float((found - expected).norm() / expected.norm()) < 0.01
