"""Parts that are one lone layer: in the model the layer itself, under its own name, and a graph where it is changed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import fx, nn

from .part_graph import PartGraph

SINGLE_LAYER = "layer"
"""Name of a lone layer inside its graph."""

_INPUT_QUANTIZER = "input_quantizer_0"


def graph_of(part: nn.Module, *, compiled: bool = True) -> fx.GraphModule:
    """The graph of a part of a model.

    Args:
        part: A graph, or a lone layer, alone or as :func:`as_part` returns it.
        compiled: As for :class:`PartGraph`, where one is made.

    Returns:
        The graph itself; for a lone layer one around it, or around a copy that shares its parameters.
    """
    if isinstance(part, fx.GraphModule):
        return part
    root, graph, layer = nn.Module(), fx.Graph(), part
    value = graph.placeholder("input")
    if (quantizer := part._modules.get(_INPUT_QUANTIZER)) is not None:
        layer = copy.copy(part)
        layer._parameters, layer._modules = dict(part._parameters), dict(part._modules)
        del layer._modules[_INPUT_QUANTIZER]
        layer._forward_pre_hooks = OrderedDict(
            (key, hook) for key, hook in part._forward_pre_hooks.items() if hook is not _quantize_input
        )
        root.add_module(_INPUT_QUANTIZER, quantizer)
        value = graph.call_module(_INPUT_QUANTIZER, (value,))
    root.add_module(SINGLE_LAYER, layer)
    graph.output(graph.call_module(SINGLE_LAYER, (value,)))
    return PartGraph(root, graph, type(layer).__name__, compiled=compiled).train(part.training)


def as_part(graph: fx.GraphModule) -> nn.Module:
    """What stands for a graph in the model: a lone layer for the graph around it, so that its names hold.

    Args:
        graph: The graph of a part.

    Returns:
        The graph itself, or the lone layer, in which the quantizer of its input is a submodule.
    """
    called = [str(node.target) for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
    if called == [SINGLE_LAYER]:
        return graph.get_submodule(SINGLE_LAYER)
    if called != [_INPUT_QUANTIZER, SINGLE_LAYER]:
        return graph
    layer = graph.get_submodule(SINGLE_LAYER)
    layer.add_module(_INPUT_QUANTIZER, graph.get_submodule(_INPUT_QUANTIZER))
    layer.register_forward_pre_hook(_quantize_input)
    return layer


def _quantize_input(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.input_quantizer_0(args[0]), *args[1:])
