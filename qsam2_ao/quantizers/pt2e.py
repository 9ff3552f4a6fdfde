"""The quantize and dequantize operations that take a quantizer's place in a graph when torchao converts it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization.fx.utils import graph_module_from_producer_nodes
from torchao.quantization.pt2e.graph_utils import collect_producer_nodes

from ..errors import UnsupportedLayerError
from .affine import fake_quantize_affine
from .integers import integer_codes

if TYPE_CHECKING:
    from .lsc import LSCFakeQuantize

_decomposed = torch.ops.quantized_decomposed


def constant_value(graph: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """What a node computes of parameters and buffers alone.

    Args:
        graph: The graph.
        node: A node of it.

    Returns:
        Its value without gradients, or None where it depends on an input of the graph.
    """
    if not is_constant(node):
        return None
    producers = collect_producer_nodes(node)
    assert producers is not None
    with torch.no_grad():
        value: Tensor = graph_module_from_producer_nodes(graph, producers)()
    return value.detach()


def is_constant(node: fx.Node, outside: Mapping[fx.Node, fx.Node] = MappingProxyType({})) -> bool:
    """Whether a node depends on no input of the graph.

    Args:
        node: The node.
        outside: Where the graph is a part of another one, what its placeholders are there.
    """
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        current = outside.get(current, current)
        if current.op == "placeholder":
            return False
        new = [source for source in current.all_input_nodes if source not in seen]
        seen.update(new)
        waiting += new
    return True


def insert_quantize_dequantize(quantizer: LSCFakeQuantize, graph: fx.GraphModule, node: fx.Node) -> None:
    """Replace a quantizer's call by torch's decomposed quantize and dequantize operations.

    A weight is put on its grid first, so that rounding it in :func:`~qsam2_ao.quantizers.integers.integer_codes`
    gives its codes whatever the rule of rounding: the result is the fake-quantized weight to the bit.

    Args:
        quantizer: Ours; that of a weight goes to eval mode.
        graph: The graph.
        node: The call of the quantizer in it.

    Raises:
        QConfigError: A grid that int8 or uint8 codes cannot hold.
        CalibrationError: An input whose range was never started.
        UnsupportedLayerError: Scales per group, or a weight that depends on an input.
        NonFiniteError: NaN or infinity in the weight or range.
    """
    if quantizer.granularity == "group":
        raise UnsupportedLayerError(
            f"{quantizer.who}: torch's quantized operations have no scales per group; choose granularity='channel'"
        )
    quantizer.name = quantizer.name or str(node.target)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if quantizer.is_weight:
        source, scale, zero_point = _on_grid(quantizer, graph, source)
    else:
        # torchao's switch to evaluation leaves quantizers training: what they saw since the last step is evaluation.
        scale, zero_point = quantizer.qparams(held=quantizer.training)
    codes = integer_codes(quantizer._grid, scale, zero_point, quantizer.code_dtype, quantizer.who)
    with graph.graph.inserting_before(node):
        settings: tuple[Any, ...] = (codes.quant_min, codes.quant_max, codes.dtype)
        if quantizer.granularity == "tensor":
            quantize, dequantize = _decomposed.quantize_per_tensor.default, _decomposed.dequantize_per_tensor.default
            settings = (float(codes.scale), int(codes.zero_point), *settings)
        else:
            quantize, dequantize = _decomposed.quantize_per_channel.default, _decomposed.dequantize_per_channel.default
            parameters = {"scale": codes.scale, "zero_point": codes.zero_point}
            buffers = [_constant(graph, f"{node.name}_{key}", value) for key, value in parameters.items()]
            settings = (*buffers, 0, *settings)
        dtype = getattr(node.meta.get("val", source.meta.get("val")), "dtype", torch.float32)
        restored = {} if dtype == torch.float32 else {"out_dtype": dtype}
        quantized = graph.graph.call_function(quantize, (source, *settings))
        node.replace_all_uses_with(graph.graph.call_function(dequantize, (quantized, *settings), restored))
    graph.graph.erase_node(node)


def _on_grid(quantizer: LSCFakeQuantize, graph: fx.GraphModule, source: fx.Node) -> tuple[fx.Node, Tensor, Tensor]:
    """A node with the weight of ``source`` on the quantizer's grid, its scale and zero point."""
    weight = constant_value(graph, source)
    if weight is None:
        raise UnsupportedLayerError(
            f"{quantizer.who}: it depends on an input of the graph; give it a quantizer with is_weight=False"
        )
    scale, zero_point, wide_scale, wide_zero = quantizer.final_qparams(weight)
    rounded = fake_quantize_affine(weight, wide_scale, wide_zero, *quantizer.codes).to(weight.dtype)
    if source.target is torch.ops.aten.mul.Tensor and len(source.all_input_nodes) == 2:
        _scale_to(graph, source, rounded)
        return source, scale, zero_point
    with graph.graph.inserting_before(source):
        return _constant(graph, f"{source.name}_on_grid", rounded, source), scale, zero_point


def _scale_to(graph: fx.GraphModule, product: fx.Node, value: Tensor) -> None:
    """Change the first factor of a product of constants so that the product has a value.

    A convolution's weight times the factor of the batch normalization behind it is such a product: torchao looks for
    it after the quantizers are replaced, and folds the factor into the weight.
    """
    first, second = product.all_input_nodes
    before, factor = constant_value(graph, first), constant_value(graph, second)
    assert before is not None
    assert factor is not None
    with graph.graph.inserting_before(product):
        name = f"{first.name}_on_grid"
        changed = _constant(graph, name, torch.where(factor != 0, value / factor, before), first)
    product.replace_input_with(first, changed)


def _constant(graph: fx.GraphModule, name: str, value: Tensor, like: fx.Node | None = None) -> fx.Node:
    """A new parameter (in place of the one at ``like``) or buffer of the graph, at its point of insertion."""
    while hasattr(graph, name):
        name += "_"
    if like is None:
        graph.register_buffer(name, value)
    else:
        graph.register_parameter(name, nn.Parameter(value, requires_grad=False))
    node = graph.graph.get_attr(name)
    node.meta = dict(like.meta) if like is not None else {}
    return node
