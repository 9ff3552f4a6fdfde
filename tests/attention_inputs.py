"""Queries, keys and values of attention, laid out in memory as SAM2's are."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_inputs(
    batch: int, heads: int, queries: int, keys: int, channels: int, width: int, generator: torch.Generator
) -> list[Tensor]:
    """In bfloat16, heads inside of the tokens: ``[batch, heads, queries, channels]``, of keys, of values ``width``."""
    sizes = (queries, channels), (keys, channels), (keys, width)
    made = [torch.randn(batch, tokens, heads, c, generator=generator).bfloat16() for tokens, c in sizes]
    return [tokens.transpose(1, 2) for tokens in made]
