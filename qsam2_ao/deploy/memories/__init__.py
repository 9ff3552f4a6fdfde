"""How SAM2's memories are kept and read: as codes, fewer of them, fewer of their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ...compat import adapt_predictors
from ...compat.video_predictor import keep_memories_as
from ...errors import QConfigError, UnsupportedLayerError
from ...graph.leaves import ScaledDotProductAttention
from ...stage import stage_of
from ..kernels.attention import Attention
from .codes import KeepCodes, memory_grid
from .merging import FewerMemories
from .tokens import FewerTokens

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

__all__ = ["use_compact_memories"]


def use_compact_memories(
    model: SAM2Base,
    *,
    codes: bool = False,
    frames: int | None = None,
    merge: bool = True,
    tokens: float | None = None,
) -> SAM2Base:
    """Keep a video's memories in fewer bytes, or let memory attention read fewer of them, in place.

    What an earlier call said is replaced; a call without options restores SAM2's own way. It holds for every predictor
    that shares the model's parts, and is not saved with the model.

    Args:
        model: A model of the SAM2Base family.
        codes: Keep memories as the 8-bit codes that memory attention reads as values: half the bytes of bfloat16, and
            the same values to the bit. Keys, which are rounded with their positions, are made of the rounded memories.
            Needs a converted or deployed model whose memory attention has quantized inputs.
        frames: Read so many memories of frames without prompts, of SAM2's 6. They are all kept: which are read is
            decided anew on every frame.
        merge: Average the most similar ones until ``frames`` remain; else leave out the oldest.
        tokens: Attend to this share of memory tokens, above 0 and up to 1: those that 64 queries of the frame weigh
            most, chosen in every layer. Needs a model whose parts are graphs: prepared, deployed or lowered.

    Returns:
        The model.

    Raises:
        QConfigError: A value is out of range.
        UnsupportedLayerError: The model is not what an option needs; nothing was changed.

    Example:
        >>> model = use_compact_memories(load_qsam2("tiny-w4a8.safetensors"), codes=True, frames=3)
    """
    if frames is not None and frames < 1:
        raise QConfigError(f"frames must be 1 or more, not {frames}: memory attention needs the last frame")
    if tokens is not None and not 0 < tokens <= 1:
        raise QConfigError(f"tokens must be a share above 0 and up to 1, not {tokens}")
    part = model.memory_attention
    keep = KeepCodes(memory_grid(part, stage_of(model).layers)) if codes else None
    attentions = [
        module
        for name, module in part.named_modules()
        if isinstance(module, (Attention, ScaledDotProductAttention)) and "cross_attn_image" in name
    ]
    if tokens is not None and not attentions:
        raise UnsupportedLayerError(
            "tokens cannot be chosen: memory attention is SAM2's own module; load a packed file, or call lower_float"
        )
    if frames is not None and part._compiled_call_impl is not None:  # type: ignore[has-type]
        raise UnsupportedLayerError(
            "frames cannot be chosen: torch.compile cannot follow the choice, and memory attention is compiled; use "
            "tokens, or leave compile_qsam2 out"
        )
    adapt_predictors()
    for module in (part, *attentions):
        _drop_hooks(module)
    keep_memories_as(model, keep)
    if frames is not None:
        part.register_forward_pre_hook(FewerMemories(frames, merge), with_kwargs=True)
    if tokens is not None:
        for module in attentions:
            module.register_forward_pre_hook(FewerTokens(tokens))
    if part._compiled_call_impl is not None:  # type: ignore[has-type]
        torch._dynamo.reset()  # what it has compiled does not look at hooks again
    return model


def _drop_hooks(module: nn.Module) -> None:
    """Remove those of an earlier call."""
    for number, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, (FewerMemories, FewerTokens)):
            del module._forward_pre_hooks[number]
            module._forward_pre_hooks_with_kwargs.pop(number, None)
