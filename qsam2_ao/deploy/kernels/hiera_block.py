"""The attention of a Hiera block, found in a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sam2.modeling.backbones.utils import window_partition, window_unpartition
from torch import fx, nn

from ..inputs import ActivationQuantizer
from .codes import QuantizeCodes


@dataclass(frozen=True)
class HieraBlock:
    """The nodes of the attention of a Hiera block."""

    qkv: fx.Node
    inside: fx.Node  # the first to read the tokens in windows: qkv, or the rounding in front of it
    merged: fx.Node  # the attended tokens, heads merged
    heads: int
    stride: int
    window: int | None
    partition: fx.Node | None
    unpartition: fx.Node | None


def hiera_block(sdpa: fx.Node, module: Callable[[Any], nn.Module | None]) -> HieraBlock | None:
    """Follow what ``MultiScaleAttention.forward`` does; None if anything differs from it."""
    if sdpa.kwargs or len(sdpa.args) != 3:
        return None
    q, k, v = (back(arg, "transpose", (1, 2)) for arg in sdpa.args)
    stride = 1
    if q is not None and q.target == "reshape":
        pool = back(back(q, "reshape"), "permute", (0, 2, 3, 1))
        pooling: Any = module(pool)
        if not isinstance(pooling, nn.MaxPool2d) or pooling.padding not in (0, (0, 0)) or pooling.ceil_mode:
            return None
        sizes = {pooling.kernel_size, pooling.stride}
        size = sizes.pop()
        stride = size if isinstance(size, int) else size[0]
        if sizes or size not in (stride, (stride, stride)):
            return None
        q = back(back(pool.args[0] if pool else None, "permute", (0, 3, 1, 2)), "reshape")
    picked = [(n.args[0], n.args[1]) for n in (q, k, v) if n is not None and n.target is operator.getitem]
    unbind = picked[0][0] if len(picked) == 3 else None
    if (
        not isinstance(unbind, fx.Node)
        or unbind.target is not torch.unbind
        or picked != [(unbind, i) for i in range(3)]
    ):
        return None
    split: Any = unbind.args[0]
    qkv = back(split, "reshape")
    heads = split.args[4] if qkv is not None and len(split.args) == 6 else None
    merged = only_user(only_user(sdpa))
    if qkv is None or qkv.op != "call_module" or not isinstance(heads, int) or merged is None:
        return None
    if merged.target != "reshape" or len(qkv.users) != 1:
        return None
    inside: fx.Node = qkv
    if isinstance(module(inside.args[0]), ActivationQuantizer | QuantizeCodes):
        inside = inside.args[0]  # type: ignore[assignment]
        if any(user is not qkv for user in inside.users):
            return None
    windows: Any = inside.args[0]
    if windows.target is not operator.getitem or windows.args[0].target is not window_partition:
        return HieraBlock(qkv, inside, merged, heads, stride, None, None, None)
    partition = windows.args[0]
    unpartition: fx.Node | None = merged
    while unpartition is not None and unpartition.target is not window_unpartition:
        unpartition = only_user(unpartition)
        if unpartition is not None and unpartition.op != "call_module" and unpartition.target is not window_unpartition:
            return None
    window = partition.args[1]
    if unpartition is None or not isinstance(window, int) or window % stride:
        return None
    return HieraBlock(qkv, inside, merged, heads, stride, window, partition, unpartition)


def back(node: Any, method: str, arguments: tuple[Any, ...] | None = None) -> fx.Node | None:
    """What a method was called on; None if the node is no such call."""
    if not isinstance(node, fx.Node) or node.op != "call_method" or node.target != method:
        return None
    return node.args[0] if arguments in (None, node.args[1:]) else None  # type: ignore[return-value]


def only_user(node: fx.Node | None) -> fx.Node | None:
    """The one node that reads a node; None if several do, or none."""
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def leads_to(node: fx.Node, end: fx.Node) -> bool:
    """Whether all that is computed from a node, its shape included, serves to compute another alone."""
    return node is end or (bool(node.users) and all(leads_to(user, end) for user in node.users))
