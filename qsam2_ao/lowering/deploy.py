"""A float graph and a plan -> the deployed graph, used both by convert and by load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx

from ..tensors.packed import PackedIntxTensor
from .activation import ActivationQuantizer
from .packed import lower_packed
from .plan import LayerPlan


def deploy_part(
    graph: fx.GraphModule,
    plans: Iterable[LayerPlan],
    weights: Mapping[str, PackedIntxTensor],
    quantizers: Mapping[str, ActivationQuantizer],
) -> None:
    """Give the layers of a part their packed weights and put the input quantizers in front of them, in place.

    Args:
        graph: The part's graph with ``nn.Linear`` and ``nn.Conv2d`` layers.
        plans: The part's quantized layers, in the order of the graph.
        weights: Layer name in the graph -> its packed weight.
        quantizers: Name of an input quantizer -> the module.

    Raises:
        UnsupportedLayerError: A weight does not fit its layer.
    """
    nodes = {node.target: node for node in graph.graph.nodes if node.op == "call_module"}
    inserted: dict[str, fx.Node] = {}
    for plan in plans:
        graph.set_submodule(plan.layer, lower_packed(graph.get_submodule(plan.layer), weights[plan.layer]))
        if plan.activation is None:
            continue
        node = nodes[plan.layer]
        if plan.activation not in inserted:
            graph.add_submodule(plan.activation, quantizers[plan.activation])
            with graph.graph.inserting_before(node):
                inserted[plan.activation] = graph.graph.call_module(plan.activation, (node.args[0],))
        node.update_arg(0, inserted[plan.activation])
    graph.graph.lint()
    graph.recompile()
