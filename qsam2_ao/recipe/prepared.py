"""What a prepared model holds: its layers with fake-quantized weights, and the fake-quantizers of their inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.ao.quantization import FakeQuantizeBase

from ..errors import QConfigError
from ..graph import PartGraph
from ..quantizers import LSCFakeQuantize
from .backend import QAT_MODULES

_QAT_CLASSES = frozenset(QAT_MODULES.values())


def quantized_layers(graph: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers of a graph (or model) whose weights are fake-quantized, with their names."""
    for name, module in graph.named_modules():
        if type(module) in _QAT_CLASSES:
            yield name, module


def layer_nodes(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """The node that calls each submodule of a graph; every layer of SAM2 is called once."""
    return {node.target: node for node in graph.graph.nodes if node.op == "call_module"}


def input_quantizer(graph: fx.GraphModule, layer: str) -> tuple[str, FakeQuantizeBase] | None:
    """The fake-quantizer of a layer's input and its name in the graph, or None where the input stays float."""
    producer = layer_nodes(graph)[layer].args[0]
    if not isinstance(producer, fx.Node) or producer.op != "call_module":
        return None
    module = graph.get_submodule(str(producer.target))
    return (str(producer.target), module) if isinstance(module, FakeQuantizeBase) else None


def input_readers(model: nn.Module) -> dict[str, list[Any]]:
    """Name of every input's fake-quantizer in a prepared model -> the quantized layers that read it."""
    readers: dict[str, list[Any]] = {}
    for path, graph in model.named_modules():
        if isinstance(graph, fx.GraphModule):
            for name, layer in quantized_layers(graph):
                found = input_quantizer(graph, name)
                if found is not None:
                    readers.setdefault(f"{path}.{found[0]}", []).append(layer)
    return readers


def fake_quantizers(model: nn.Module) -> Iterator[tuple[str, FakeQuantizeBase]]:
    """Every fake-quantizer of a prepared model with its name."""
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantizeBase):
            yield name, module


def is_per_tensor(quantizer: FakeQuantizeBase) -> bool:
    """Whether a fake-quantizer, ours or torch.ao's, has one scale for the whole tensor."""
    return quantizer.qscheme in (torch.per_tensor_affine, torch.per_tensor_symmetric)


def code_range(quantizer: FakeQuantizeBase, where: str) -> tuple[int, int, int]:
    """Smallest code, largest code and bits of a fake-quantizer, ours or torch.ao's.

    Args:
        quantizer: The fake-quantizer.
        where: Name of its layer, for the error message.

    Returns:
        ``(quant_min, quant_max, bits)``.

    Raises:
        QConfigError: Its codes do not fit in 8 bits.
    """
    if isinstance(quantizer, LSCFakeQuantize):
        quant_min, quant_max = quantizer.codes
    else:
        observer: Any = getattr(quantizer, "activation_post_process", quantizer)
        quant_min, quant_max = int(observer.quant_min), int(observer.quant_max)
    bits = max(2, (quant_max - quant_min).bit_length())
    if bits > 8:
        raise QConfigError(f"{where}: {bits}-bit codes ({quant_min}..{quant_max}) do not fit in 8 bits")
    return quant_min, quant_max, bits


def is_quantizer(graph: fx.GraphModule, node: object) -> bool:
    """Whether a node of a graph calls a fake-quantizer."""
    return (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and isinstance(graph.get_submodule(str(node.target)), FakeQuantizeBase)
    )


def without_input_quantizers(prepared: fx.GraphModule) -> fx.GraphModule:
    """A copy of a fake-quantized graph in which every input is float; it shares the layers and parameters."""
    graph = PartGraph(prepared, copy.deepcopy(prepared.graph))
    for node in list(graph.graph.nodes):
        if is_quantizer(graph, node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
            graph.delete_submodule(str(node.target))
    graph.recompile()
    return graph.train(prepared.training)
