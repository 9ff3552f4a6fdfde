"""A deployed part -> a part whose layers run on oneDNN's int8 products, and everything else in float32."""

from __future__ import annotations

import copy
from typing import Any

import torch
from sam2.modeling.position_encoding import PositionEmbeddingSine
from torch import fx

from ...compat.tracer import read_graph
from ...graph import PartGraph
from ..kernels.casts import caller_dtype, to_dtype
from ..kernels.editing import GraphEditor
from ..kernels.nonfinite import carry_nonfinite
from ..kernels.positions import SinePosition
from .codes import OneDNNCodes
from .linear import OneDNNLinear, build_onednn, why_not_onednn


class Float32Graph(PartGraph):
    """A graph that runs in float32 whatever autocast says, and returns the caller's dtype.

    bfloat16, which SAM2's video predictor asks for, is emulated on the CPUs that this is for.
    """

    keeps_dtypes = True

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
    lowered = GraphEditor(Float32Graph(part, copy.deepcopy(part.graph), compiled=False))
    lowered.packed_layers(why_not_onednn, build_onednn, OneDNNCodes)
    if None not in lowered.reasons.values():
        return part, lowered.reasons
    lowered.fold_activations(OneDNNLinear)
    # Fewer bits would need a clamp that oneDNN does not have.
    lowered.fold_codes(OneDNNLinear, OneDNNCodes, lambda layer, grid: grid.high == 255)
    _float32(lowered)
    carry_nonfinite(lowered.part, batch_dim)
    return lowered.finish(), lowered.reasons


def _float32(lowered: GraphEditor) -> None:
    """Position encodings, kept from image to image, and the results in float32."""
    for node, encoding in lowered.nodes(PositionEmbeddingSine):
        kept = lowered.call(node, "position", SinePosition(encoding), node.args[0], torch.float32)
        casts = [user for user in node.users if user.op == "call_method" and user.target == "to"]
        for old in (*casts, node):
            old.replace_all_uses_with(kept)
            lowered.graph.erase_node(old)
    output = lowered.graph.output_node()
    with lowered.graph.inserting_before(output):
        output.update_arg(0, lowered.graph.call_function(to_dtype, (output.args[0], torch.float32)))
