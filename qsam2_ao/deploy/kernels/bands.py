"""The first blocks of the image encoder, a band of the image at a time, so that what they pass on stays in the cache.

At 1024 pixels a tensor of the first stage has up to 50 MB, and writing and reading it costs more than multiplying.
Their attention is inside of windows, so that a band of whole windows can go through several blocks on its own.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import Tensor, fx, nn

from .attention import WindowAttention
from .codes import QuantizeCodes
from .linear import Int8Linear
from .norm import Norm

_ALIGNMENT = 32
"""Rows of a band that windows may ask for; larger windows are not run in bands."""
_TOKENS = 8192
"""Tokens of a band: a few megabytes in every tensor."""
_ROWWISE = (Norm, Int8Linear, QuantizeCodes, nn.Linear)


class Bands(nn.Module):
    """Runs a graph on bands of rows and puts the results together.

    Args:
        graph: Tokens ``[B, H, W, C]`` -> a tuple of tokens ``[B, H / stride, W / stride, C']``, each row of them from
            ``stride`` rows alone where ``H`` is a multiple of ``alignment``.
        strides: Of each result.
        alignment: Rows that belong together.
    """

    def __init__(self, graph: fx.GraphModule, strides: tuple[int, ...], alignment: int) -> None:
        super().__init__()
        self.graph, self.strides, self.alignment = graph, strides, alignment

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """All results for the tokens ``x``."""
        batch, height, width, _ = x.shape
        rows = max(1, _TOKENS // (width * self.alignment)) * self.alignment
        if height % self.alignment or width % self.alignment or batch * height <= rows:
            return self.graph(x)
        whole: list[Tensor] = []
        for image in range(batch):
            for top in range(0, height, rows):
                parts = self.graph(x[image : image + 1, top : top + rows])
                if not whole:
                    whole = [
                        part.new_empty((batch, height // stride, width // stride, part.shape[-1]))
                        for stride, part in zip(self.strides, parts, strict=True)
                    ]
                for out, stride, part in zip(whole, self.strides, parts, strict=True):
                    out[image : image + 1, top // stride : top // stride + part.shape[1]] = part
        return tuple(whole)

    def extra_repr(self) -> str:
        """Alignment and strides."""
        return f"alignment={self.alignment}, strides={self.strides}"


def run_in_bands(part: fx.GraphModule) -> None:
    """Move the blocks with small windows at the start of a lowered image encoder into one ``Bands``, in place.

    Args:
        part: A lowered part; one without such blocks is left as it is.
    """
    modules = dict(part.named_modules())
    start = _start(part.graph, modules)
    if start is None:
        return
    strides, members, alignment = _members(part.graph, modules, start)
    results = [node for node in members if any(user not in strides for user in node.users)]
    if any(node.target == "permute" and node.args[1:] != (0, 2, 3, 1) for node in results):
        return
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {start: graph.placeholder("tokens")}
    for node in members:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in results))
    bands = Bands(fx.GraphModule(part, graph), tuple(strides[node] for node in results), alignment)
    part.add_submodule("bands", bands)
    with part.graph.inserting_before(members[0]):
        call = part.graph.call_module("bands", (start,))
        taken = [part.graph.call_function(operator.getitem, (call, i)) for i in range(len(results))]
    for node, new in zip(results, taken, strict=True):
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in strides)
    for node in reversed(members):
        part.graph.erase_node(node)


def _start(graph: fx.Graph, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The tokens that the first block with windows reads."""
    for node in graph.nodes:
        attention = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(attention, WindowAttention):
            while node.op == "call_module" and not isinstance(modules[str(node.target)], Norm):
                node = node.args[0]
            return node.args[0] if node.op == "call_module" else None
    return None


def _members(
    graph: fx.Graph, modules: dict[str, nn.Module], start: fx.Node
) -> tuple[dict[fx.Node, int], list[fx.Node], int]:
    """What can be computed from whole bands: node -> rows of ``start`` for a row of it; in order; the alignment."""
    strides, members, alignment = {start: 1}, [], 1
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node is start or not inputs or any(i not in strides for i in inputs):
            continue
        stride = strides[inputs[0]]
        if any(strides[i] != stride for i in inputs):
            continue
        module: Any = modules.get(str(node.target)) if node.op == "call_module" else None
        needed = stride
        if isinstance(module, WindowAttention) and module.window is not None:
            needed, stride = stride * module.window, stride * module.stride
        elif isinstance(module, nn.MaxPool2d):
            size = module.kernel_size if isinstance(module.kernel_size, int) else module.kernel_size[0]
            needed = stride = stride * size
        elif node.target == "permute":
            pooled = modules.get(str(inputs[0].target)) if inputs[0].op == "call_module" else None
            pools = [modules.get(str(user.target)) for user in node.users]
            if not isinstance(pooled, nn.MaxPool2d) and not all(isinstance(pool, nn.MaxPool2d) for pool in pools):
                continue
        elif type(module) not in _ROWWISE and node.target is not operator.add:
            continue
        if math.lcm(alignment, needed) > _ALIGNMENT:
            continue
        alignment = math.lcm(alignment, needed)
        strides[node] = stride
        members.append(node)
    return strides, members, alignment
