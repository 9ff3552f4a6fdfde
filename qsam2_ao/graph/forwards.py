"""Traceable forwards for the SAM2 classes whose own forward has control flow that a symbolic trace cannot follow.

Each takes the module as its first argument, computes what the class's forward computes to the bit, and keeps the
names of its arguments, so that the graph is called just as the module was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sam2.modeling.backbones.hieradet import Hiera, MultiScaleBlock
from sam2.modeling.backbones.utils import window_partition, window_unpartition
from sam2.modeling.memory_attention import MemoryAttention
from sam2.modeling.memory_encoder import MemoryEncoder
from sam2.modeling.sam.transformer import Attention, RoPEAttention
from torch import Tensor, nn

from ..compat.rebind import rebound
from ..compat.tracer import recorded
from . import leaves

hiera_pos_embed = recorded(leaves.hiera_pos_embed)
mask_probabilities = recorded(leaves.mask_probabilities)
only_level = recorded(leaves.only_level)


def _hiera(self: Hiera, x: Tensor) -> list[Tensor]:
    x = self.patch_embed(x)
    x = x + hiera_pos_embed(self.pos_embed, self.pos_embed_window, x)
    outputs = []
    for i, block in enumerate(self.blocks):
        x = block(x)
        if i == self.stage_ends[-1] or (i in self.stage_ends and self.return_interm_layers):
            outputs.append(x.permute(0, 3, 1, 2))
    return outputs


def _heads(attention: Attention, x: Tensor) -> Tensor:
    return attention._separate_heads(x, attention.num_heads)


def _attention(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = _heads(self, self.q_proj(q))
    k = _heads(self, self.k_proj(k))
    v = _heads(self, self.v_proj(v))
    return self.out_proj(self._recombine_heads(self.sdpa(q, k, v)))


def _rope_attention(self: RoPEAttention, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
    q = _heads(self, self.q_proj(q))
    k = _heads(self, self.k_proj(k))
    v = _heads(self, self.v_proj(v))
    q, k = self.rope(q, k, num_k_exclude_rope)
    return self.out_proj(self._recombine_heads(self.sdpa(q, k, v)))


def _memory_attention(
    self: MemoryAttention,
    curr: Tensor | list[Tensor],
    memory: Tensor,
    curr_pos: Tensor | list[Tensor] | None = None,
    memory_pos: Tensor | None = None,
    num_obj_ptr_tokens: int = 0,
) -> Tensor:
    assert curr_pos is not None  # the optional arguments are optional in name only
    assert memory_pos is not None
    output = only_level(curr)
    query_pos = only_level(curr_pos)
    if self.pos_enc_at_input:
        output = output + 0.1 * query_pos
    if self.batch_first:
        output = output.transpose(0, 1)
        query_pos = query_pos.transpose(0, 1)
        memory = memory.transpose(0, 1)
        memory_pos = memory_pos.transpose(0, 1)
    for layer in self.layers:
        excluded = (
            {"num_k_exclude_rope": num_obj_ptr_tokens} if isinstance(layer.cross_attn_image, RoPEAttention) else {}
        )
        # With plain attention SAM2 never passes the count; with rotary attention 0 excludes nothing.
        tgt = layer._forward_sa(output, query_pos)
        tgt2 = layer.norm2(tgt)
        tgt2 = layer.cross_attn_image(
            q=tgt2 + query_pos if layer.pos_enc_at_cross_attn_queries else tgt2,
            k=memory + memory_pos if layer.pos_enc_at_cross_attn_keys else memory,
            v=memory,
            **excluded,
        )
        tgt = tgt + layer.dropout2(tgt2)
        tgt2 = layer.norm3(tgt)
        tgt2 = layer.linear2(layer.dropout(layer.activation(layer.linear1(tgt2))))
        output = tgt + layer.dropout3(tgt2)
    output = self.norm(output)
    return output.transpose(0, 1) if self.batch_first else output


def _memory_encoder(
    self: MemoryEncoder, pix_feat: Tensor, masks: Tensor, skip_mask_sigmoid: bool = False
) -> dict[str, Any]:
    masks = self.mask_downsampler(mask_probabilities(masks, skip_mask_sigmoid))
    x = self.pix_feat_proj(pix_feat.to(masks.device)) + masks
    x = self.out_proj(self.fuser(x))
    return {"vision_features": x, "vision_pos_enc": [self.position_encoding(x).to(x.dtype)]}


FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    Hiera: _hiera,
    MultiScaleBlock: rebound(
        MultiScaleBlock.forward,
        window_partition=recorded(window_partition),
        window_unpartition=recorded(window_unpartition),
    ),
    Attention: _attention,
    RoPEAttention: _rope_attention,
    MemoryAttention: _memory_attention,
    MemoryEncoder: _memory_encoder,
}
