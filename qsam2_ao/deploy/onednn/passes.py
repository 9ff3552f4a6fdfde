"""A deployed part -> a part whose layers run on oneDNN's int8 products, and everything else in float32."""

from __future__ import annotations

import copy
from typing import Any

import torch
from sam2.modeling.position_encoding import PositionEmbeddingSine
from torch import fx, nn

from ...compat.tracer import read_graph
from ...graph import PartGraph
from ..inputs import ActivationQuantizer
from ..kernels.activations import activation_name
from ..kernels.casts import caller_dtype, to_dtype
from ..kernels.codes import CodeGrid
from ..kernels.hiera_block import only_user
from ..kernels.nonfinite import carry_nonfinite
from ..kernels.positions import SinePosition
from ..packed import PackedIntxTensor
from .codes import OneDNNCodes
from .linear import OneDNNLinear, lower_onednn, why_not_onednn


class Float32Graph(PartGraph):
    """A graph that runs in float32 whatever autocast says, and returns the caller's dtype.

    bfloat16, which SAM2's video predictor asks for, is emulated on the CPUs that this is for.
    """

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """What the graph gives, in autocast's dtype, else that of the first input."""
        first = next(iter(self.graph.nodes)).target
        dtype = caller_dtype(inputs[0] if inputs else named[str(first)])
        with torch.autocast("cpu", enabled=False):
            out = super().__call__(*to_dtype(inputs, torch.float32), **to_dtype(named, torch.float32))
        return to_dtype(out, dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        """What pickle takes: that of ``PartGraph``, read back as this class."""
        _, state = super().__reduce__()
        return _unpickle, state


def _unpickle(body: dict[Any, Any], imports: str, class_name: str) -> Float32Graph:
    return Float32Graph(*read_graph(body, imports), class_name)


def lower_part_onednn(part: fx.GraphModule, batch_dim: int = 0) -> tuple[fx.GraphModule, dict[str, str | None]]:
    """Lower the layers of a part that oneDNN can run.

    Args:
        part: A deployed part in eval mode on the CPU; not modified.
        batch_dim: Dimension of its inputs and outputs that counts samples.

    Returns:
        The lowered part, which no longer can be saved, or ``part`` itself if oneDNN runs none of its layers; and layer
        name in the graph -> None, or why it was left packed.

    Example:
        >>> lowered, reasons = lower_part_onednn(quantized.image_encoder)
    """
    lowered = Float32Graph(part, copy.deepcopy(part.graph), compiled=False)
    reasons = _layers(lowered)
    if None not in reasons.values():
        return part, reasons
    _activations(lowered)
    _output_codes(lowered)
    _float32(lowered)
    carry_nonfinite(lowered, batch_dim)
    lowered.graph.eliminate_dead_code()
    lowered.delete_all_unused_submodules()
    lowered.graph.lint()
    lowered.recompile()
    lowered.eval()
    return lowered, reasons


def _layers(part: PartGraph) -> dict[str, str | None]:
    """Packed layers behind input quantizers -> oneDNN's behind ``OneDNNCodes``."""
    reasons: dict[str, str | None] = {}
    coded: dict[fx.Node, fx.Node] = {}
    for node in list(part.graph.nodes):
        module: Any = _module(part, node)
        if not isinstance(getattr(module, "weight", None), PackedIntxTensor):
            continue
        source = node.args[0]
        quantizer = _module(part, source)
        name = str(node.target)
        reasons[name] = why_not_onednn(
            module, module.weight, None, quantizer if isinstance(quantizer, ActivationQuantizer) else None
        )
        if reasons[name] is not None:
            continue
        assert isinstance(quantizer, ActivationQuantizer)  # by why_not_onednn
        part.set_submodule(name, lower_onednn(module, module.weight, quantizer))
        if source not in coded:
            coded[source] = _call(part, source, "codes", OneDNNCodes(CodeGrid.of(quantizer)), source.args[0])
        node.update_arg(0, coded[source])
    part.graph.eliminate_dead_code()
    return reasons


def _activations(part: PartGraph) -> None:
    """GELU and ReLU -> into the layer before them."""
    for node, layer in _folding(part):
        user = only_user(node)
        if user is None:
            continue
        if (name := activation_name(user, _module(part, user))) is not None:
            layer.activation = name
            user.replace_all_uses_with(node)
            part.graph.erase_node(user)


def _output_codes(part: PartGraph) -> None:
    """Let a layer round its own output to 8 bits, if its rounded output is all that is read."""
    for node, layer in _folding(part):
        user = only_user(node)
        codes = _module(part, user)
        # Fewer bits would need a clamp that oneDNN does not have.
        if user is not None and isinstance(codes, OneDNNCodes) and codes.grid.high == 255:
            layer.grid = codes.grid
            user.replace_all_uses_with(node)
            part.graph.erase_node(user)


def _float32(part: PartGraph) -> None:
    """Position encodings, kept from image to image, and the results in float32."""
    for node in list(part.graph.nodes):
        encoding = _module(part, node)
        if isinstance(encoding, PositionEmbeddingSine):
            kept = _call(part, node, "position", SinePosition(encoding), node.args[0], torch.float32)
            casts = [user for user in node.users if user.op == "call_method" and user.target == "to"]
            for old in (*casts, node):
                old.replace_all_uses_with(kept)
                part.graph.erase_node(old)
    output = part.graph.output_node()
    with part.graph.inserting_before(output):
        output.update_arg(0, part.graph.call_function(to_dtype, (output.args[0], torch.float32)))


def _folding(part: PartGraph) -> list[tuple[fx.Node, OneDNNLinear]]:
    """The layers that are called once, and can take over what follows them."""
    calls = [str(node.target) for node in part.graph.nodes if node.op == "call_module"]
    found = [(node, _module(part, node)) for node in part.graph.nodes]
    return [(n, m) for n, m in found if isinstance(m, OneDNNLinear) and calls.count(str(n.target)) == 1]


def _module(part: PartGraph, node: Any) -> nn.Module | None:
    return part.get_submodule(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None


def _call(part: PartGraph, before: fx.Node, kind: str, module: nn.Module, *args: Any) -> fx.Node:
    """Insert a call of a new module, which profiles will know as `kind`."""
    path = f"{kind}_{sum(name.startswith(kind) for name in part._modules)}"
    part.add_submodule(path, module)
    with part.graph.inserting_before(before):
        return part.graph.call_module(path, args)
