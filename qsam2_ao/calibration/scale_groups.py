"""Which channels of SAM2 can be rescaled between two layers without changing what the model computes.

Dividing channel j of a producer by s_j and multiplying column j of every layer that reads it by s_j is exact
wherever nothing but a (channel-wise) linear map or a ReLU lies between: behind a LayerNorm, between an attention's
values and its output projection, and through a ReLU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import MultiScaleBlock
from sam2.modeling.memory_attention import MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock
from sam2.modeling.sam.transformer import Attention
from sam2.modeling.sam2_utils import MLP
from torch import Tensor, nn

from ..errors import CalibrationError


@dataclass(frozen=True)
class ScaleGroup:
    """Channels that one module writes and a few linear layers read.

    Attributes:
        producer: Path of a normalization or linear layer.
        first: First of its channels (rows of a linear layer) that belong to the group.
        channels: How many.
        consumers: Paths of the linear layers whose input columns they are.
    """

    producer: str
    first: int
    channels: int
    consumers: tuple[str, ...]


def scale_groups(model: nn.Module) -> list[ScaleGroup]:
    """The groups of a float model, in the order of its modules.

    Args:
        model: A float ``SAM2Base`` or any module that holds SAM2's blocks.

    Returns:
        Every pair that can be rescaled exactly; no channel belongs to two groups.

    Example:
        >>> [group.producer for group in scale_groups(model)][:2]
        ['image_encoder.trunk.blocks.0.norm1', 'image_encoder.trunk.blocks.0.attn.qkv']
    """
    return [group for name, module in model.named_modules() for group in _groups_of(name, module)]


def _groups_of(name: str, module: nn.Module) -> Iterator[ScaleGroup]:
    def group(producer: str, *consumers: str, part: int = 0) -> ScaleGroup:
        reader = module.get_submodule(consumers[0])
        channels = int(reader.weight.shape[1])  # type: ignore[union-attr, index]
        prefix = f"{name}." if name else ""
        return ScaleGroup(prefix + producer, part * channels, channels, tuple(prefix + c for c in consumers))

    if isinstance(module, MultiScaleBlock):
        shortcut = ("proj",) if module.dim != module.dim_out else ()
        yield group("norm1", "attn.qkv", *shortcut)
        yield group("attn.qkv", "attn.proj", part=2)  # queries, keys, values
        yield group("norm2", "mlp.layers.0")
    elif isinstance(module, MemoryAttentionLayer):
        # Where a position is added to the normalized tokens, only those that are read as they are.
        if not module.pos_enc_at_attn:
            yield group("norm1", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        if not module.pos_enc_at_cross_attn_queries:
            yield group("norm2", "cross_attn_image.q_proj")
        yield group("norm3", "linear1")
        if module.activation is F.relu:
            yield group("linear1", "linear2")
    elif isinstance(module, Attention):
        yield group("v_proj", "out_proj")
    elif isinstance(module, CXBlock):
        yield group("norm", "pwconv1")
    elif isinstance(module, MLP) and isinstance(module.act, nn.ReLU):
        for index in range(module.num_layers - 1):
            yield group(f"layers.{index}", f"layers.{index + 1}")


@torch.no_grad()
def rescale(model: nn.Module, group: ScaleGroup, scale: Tensor) -> None:
    """Divide a group's channels by ``scale`` at the producer and multiply the readers' columns by it, in place.

    Args:
        model: The model that the group is of.
        group: One of :func:`scale_groups`.
        scale: One positive factor per channel, [channels].

    Raises:
        CalibrationError: A factor is not positive and finite, or there are not as many as channels.
    """
    if scale.shape != (group.channels,) or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise CalibrationError(
            f"{group.producer}: rescaling needs {group.channels} positive, finite factors, got {list(scale.shape)} "
            f"from {float(scale.min()):.3g} to {float(scale.max()):.3g}"
        )
    rows = slice(group.first, group.first + group.channels)
    producer = model.get_submodule(group.producer)
    for parameter in (producer.weight, producer.bias):
        if isinstance(parameter, Tensor):
            factor = scale.to(parameter).reshape(-1, *[1] * (parameter.dim() - 1))
            parameter[rows] = parameter[rows] / factor
    for consumer in group.consumers:
        weight = model.get_submodule(consumer).weight
        assert isinstance(weight, Tensor)
        weight.mul_(scale.to(weight))
