"""The parts of a deployed model under torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, fx, nn

from ..errors import UnsupportedLayerError
from ..graph import find_parts
from ..stage import stage_of
from .memories.merging import FewerMemories

_COMPILED = (fx.GraphModule, nn.Linear, nn.Conv2d)
_MOST_SIZES = 1024
"""Of images that an encoder is compiled for; torch gives up after 8."""


def compile_qsam2(model: SAM2Base, **options: Any) -> SAM2Base:
    """Compile every part of a deployed model, in place; each compiles when it is first called.

    Where the int8 kernels run, there is little left to fuse. It is for ``target="packed"``: dequantization is fused
    into what reads the weight. Weights are not frozen into the graphs, which would keep float copies of them.

    Args:
        model: A model from ``convert_qsam2``, ``load_qsam2`` or ``lower_float``.
        **options: For ``torch.compile``, such as ``backend`` or ``mode``.

    Returns:
        The model, with its names and classes as they were: predictors and ``save_qsam2`` take it. The image encoder
        compiles once for each size of image. The other parts have dynamic shapes: they compile again for the second
        object, and then no more, however many objects, clicks, memory frames and object pointers there are. Parts of
        which nothing was quantized stay SAM2's own modules, and run as those do.

    Raises:
        UnsupportedLayerError: A part is not a graph, the model was lowered to "onednn", or memory attention chooses its
            frames (``use_compact_memories(frames=...)``).

    Example:
        >>> model = compile_qsam2(load_qsam2("tiny-w4a8.safetensors"))  # each part compiles when it first runs
    """
    refuse_opaque_weights(model, "compiled")
    found = {part: model.get_submodule(part.path) for part in find_parts(model)}
    quantized = bool(stage_of(model).layers)
    parts = [part for part, module in found.items() if isinstance(module, _COMPILED) or not quantized]
    for part in parts:
        if any(isinstance(hook, FewerMemories) for hook in found[part]._forward_pre_hooks.values()):
            raise UnsupportedLayerError(
                f"{part.path} chooses its frames (use_compact_memories(frames=...)), which torch.compile cannot "
                "follow; use tokens instead, or leave one of the two out"
            )
        if not isinstance(found[part], _COMPILED):
            raise UnsupportedLayerError(
                f"{part.path} is no graph: compile_qsam2 takes models from convert_qsam2 and load_qsam2; SAM2 compiles "
                "float models itself (vos_optimized=True)"
            )
    for part in parts:
        module = found[part]
        _keep_positions(module, part.region, model.image_size)
        of_images = part.region == "image_encoder"
        module.compile(fullgraph=True, dynamic=None if of_images else True, **options)
        if of_images:
            module._compiled_call_impl = partial(_of_fixed_size, module._compiled_call_impl)
    return model


def _of_fixed_size(compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call what compiles for each size of image: with symbols for height and width, tracing takes minutes."""
    if torch.compiler.is_compiling():
        return compiled(*args, **kwargs)
    for images in (*args, *kwargs.values()):
        if isinstance(images, Tensor):
            for side in (2, 3):
                torch._dynamo.mark_static(images, side)
    with torch._dynamo.config.patch(recompile_limit=_MOST_SIZES, accumulated_recompile_limit=_MOST_SIZES):
        return compiled(*args, **kwargs)


def _keep_positions(part: nn.Module, region: str, side: int) -> None:
    """Compute what encodings of positions keep from their first call on: what is compiled depends on it."""
    for module in part.modules():
        if isinstance(module, PositionEmbeddingSine):
            for stride in (4, 8, 16, 32) if region == "image_encoder" else (16,):
                module._pe(1, next(part.parameters()).device, side // stride, side // stride)


def refuse_opaque_weights(model: SAM2Base, action: str) -> None:
    """Raise for a model whose weights torch.compile cannot read.

    Args:
        model: A deployed model.
        action: What was to be done with it.

    Raises:
        UnsupportedLayerError: It was lowered to "onednn".
    """
    if any(taken.target == "onednn" for taken in stage_of(model).targets.values()):
        raise UnsupportedLayerError(
            f'torch.compile cannot read the weights of the target "onednn": load the file with target="packed", '
            f"which can be {action}"
        )
