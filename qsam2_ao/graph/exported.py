"""The linear layers and convolutions of an exported graph, under the names that they had as modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from ..quantizers.pt2e import is_constant

_aten = torch.ops.aten
# Operation -> the module that stands for it in a QConfigMapping's rules for types.
_QUANTIZED: dict[Any, type[nn.Module]] = {
    _aten.linear.default: nn.Linear,
    _aten.conv1d.default: nn.Conv1d,
    _aten.conv1d.padding: nn.Conv1d,
    _aten.conv2d.default: nn.Conv2d,
    _aten.conv2d.padding: nn.Conv2d,
    _aten.conv3d.default: nn.Conv3d,
    _aten.conv3d.padding: nn.Conv3d,
}
# Operations with weights, too, and which of their arguments may be the weight.
_FLOAT: dict[Any, tuple[int, ...]] = {
    _aten.conv_transpose1d.default: (1,),
    _aten.conv_transpose2d.input: (1,),
    _aten.conv_transpose3d.input: (1,),
    _aten.convolution.default: (1,),
    _aten.embedding.default: (0,),
    _aten.matmul.default: (0, 1),
    _aten.mm.default: (0, 1),
    _aten.bmm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.baddbmm.default: (1, 2),
    _aten.bilinear.default: (2,),
    _aten.einsum.default: (1,),
    _aten.gru.input: (2,),
    _aten.gru.data: (3,),
    _aten.lstm.input: (2,),
    _aten.lstm.data: (3,),
    _aten.rnn_relu.input: (2,),
    _aten.rnn_tanh.input: (2,),
}


@dataclass(frozen=True)
class ExportedLayer:
    """One call of a layer in an exported graph.

    Attributes:
        name: Path of its module; a weight that is not called ``weight`` keeps its own name (MultiheadAttention's
            ``in_proj_weight``). Two calls of one layer have the same name.
        node: The operation.
        kind: ``nn.Linear`` or ``nn.Conv2d``, for example; None for an operation that is not quantized.
        block: The operation that it is inside of, such as ``wrap_with_autocast``; empty outside of such blocks. What is
            inside is not quantized.
    """

    name: str
    node: fx.Node
    kind: type[nn.Module] | None
    block: str = ""

    @property
    def input(self) -> fx.Node:
        """What the layer reads."""
        return self.node.args[0]  # type: ignore[return-value]

    @property
    def weight(self) -> fx.Node:
        """The weight of a layer that has a kind: a parameter, or what the graph computes of parameters alone."""
        return self.node.args[1]  # type: ignore[return-value]


def exported_layers(graph: fx.GraphModule, path: str = "") -> list[ExportedLayer]:
    """The operations of an exported graph that multiply by a weight, in their order.

    Args:
        graph: What ``torch.export.export(...).module()`` returns.
        path: Path of the exported module in its model, to be put before the names.

    Returns:
        Linear layers, convolutions, and other operations with weights; those between activations are left out.

    Example:
        >>> exported = torch.export.export(nn.Sequential(nn.Linear(4, 2)), (torch.randn(1, 4),)).module()
        >>> [(layer.name, layer.kind.__name__) for layer in exported_layers(exported)]
        [('0', 'Linear')]
    """
    return list(_layers(graph, path, {}, ""))


def _layers(
    graph: fx.GraphModule, path: str, outside: Mapping[fx.Node, fx.Node], block: str
) -> Iterator[ExportedLayer]:
    """The layers of a graph, and of the blocks in it: contexts such as autocast, and branches, are graphs of their own.

    Args:
        graph: The graph.
        path: Put before the names.
        outside: What a block's placeholders are in the graph around all blocks.
        block: See :class:`ExportedLayer`.
    """
    for node in graph.graph.nodes:
        for index in (1,) if node.target in _QUANTIZED else _FLOAT.get(node.target, ()):
            given = node.args[index]
            sources = given if isinstance(given, Sequence) else (given,)
            weights = [source for source in sources if isinstance(source, fx.Node) and is_constant(source, outside)]
            if weights:
                name = _name(node, outside.get(weights[0], weights[0]))
                path_of_it = ".".join(part for part in (path, name) if part)
                yield ExportedLayer(path_of_it, node, None if block else _QUANTIZED.get(node.target), block)
                break
        leaves = tree_leaves(node.args)
        blocks = {place: inner for place, leaf in enumerate(leaves) if (inner := _graph_of(graph, leaf)) is not None}
        for inner in blocks.values():
            placeholders = [own for own in inner.graph.nodes if own.op == "placeholder"]
            operands = [outside.get(operand, operand) for operand in leaves[max(blocks) + 1 :]]
            yield from _layers(inner, path, dict(zip(placeholders, operands, strict=False)), str(node.target))


def _graph_of(graph: fx.GraphModule, leaf: object) -> fx.GraphModule | None:
    """The graph that an argument of an operation stands for, if it does."""
    found = getattr(graph, str(leaf.target), None) if isinstance(leaf, fx.Node) and leaf.op == "get_attr" else None
    return found if isinstance(found, fx.GraphModule) else None


def _name(node: fx.Node, weight: fx.Node) -> str:
    if weight.op == "get_attr":
        parent, _, own = str(weight.target).rpartition(".")
        return parent if own == "weight" else str(weight.target)
    # A weight that is computed, as by torch.nn.utils.parametrize: the module that calls the operation.
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).partition("@")[0] if stack else node.name
