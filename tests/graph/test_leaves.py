from __future__ import annotations

import pytest
import torch
from sam2.modeling.sam.transformer import RoPEAttention
from torch.nn import functional as F

from qsam2_ao.graph.leaves import AxialRoPE, ScaledDotProductAttention, mask_probabilities, only_level


def test_attention_drops_out_in_training_only() -> None:
    attention = ScaledDotProductAttention(0.5)
    q, k, v = torch.randn(3, 1, 2, 9, 4)
    expected = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attention.eval()(q, k, v), expected)
    assert not torch.equal(attention.train()(q, k, v), expected)


def test_rope_follows_the_grid_and_spares_the_excluded_keys() -> None:
    rope = AxialRoPE.of(RoPEAttention(16, 1, rope_k_repeat=True, feat_sizes=(4, 4)))
    q, k = torch.randn(1, 1, 9, 16), torch.randn(1, 1, 20, 16)
    rotated_q, rotated_k = rope(q, k, 2)
    assert torch.equal(rotated_k[:, :, 18:], k[:, :, 18:])
    # A rotation keeps lengths, and both repeats of the grid turn alike.
    torch.testing.assert_close(rotated_q.norm(dim=-1), q.norm(dim=-1))
    same = torch.cat([q, q], dim=2)
    torch.testing.assert_close(rope(q, same, 0)[1], torch.cat([rotated_q, rotated_q], dim=2))


def test_rope_returns_its_own_frequencies_when_another_thread_puts_others_in_their_place() -> None:
    class Contended(AxialRoPE):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, others if name == "freqs_cis" else value)

    attention = RoPEAttention(16, 1, feat_sizes=(4, 4))
    others = attention.freqs_cis
    x = torch.randn(1, 1, 9, 16)
    expected, _ = AxialRoPE.of(attention)(x, x)
    assert torch.equal(Contended.of(attention)(x, x)[0], expected)


def test_rope_refuses_memories_it_was_not_built_for() -> None:
    rope = AxialRoPE.of(RoPEAttention(16, 1, feat_sizes=(4, 4)))
    with pytest.raises(ValueError, match="without rope_k_repeat"):
        rope(torch.randn(1, 1, 16, 16), torch.randn(1, 1, 32, 16))


def test_only_level_takes_one_level() -> None:
    x = torch.randn(2)
    assert only_level([x]) is x
    assert only_level(x) is x
    with pytest.raises(ValueError, match="one feature level, got 2"):
        only_level([x, x])


def test_mask_probabilities_applies_the_sigmoid_once() -> None:
    x = torch.randn(3)
    assert mask_probabilities(x, True) is x
    assert torch.equal(mask_probabilities(x, False), x.sigmoid())
