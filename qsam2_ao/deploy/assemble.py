"""A float graph and a record -> the deployed graph, used both by convert and by load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from sam2.modeling.sam2_base import SAM2Base
from torch import fx

from ..errors import CheckpointError
from ..stage import set_stage, stage_of
from .inputs import ActivationQuantizer
from .packed import PackedIntxTensor
from .portable import lower_packed
from .record import LayerRecord


def deploy_part(
    graph: fx.GraphModule,
    records: Iterable[LayerRecord],
    weights: Mapping[str, PackedIntxTensor],
    quantizers: Mapping[str, ActivationQuantizer],
    *,
    compiled: bool = True,
) -> None:
    """Give the layers of a part their packed weights and put the input quantizers in front of them, in place.

    Args:
        graph: The part's graph with ``nn.Linear`` and ``nn.Conv2d`` layers.
        records: The part's quantized layers, in the order of the graph.
        weights: Layer name in the graph -> its packed weight.
        quantizers: Name of an input quantizer -> the module.
        compiled: Whether the graph can be called at once; else ``recompile`` must be called, or it is lowered.

    Raises:
        UnsupportedLayerError: A weight does not fit its layer.
    """
    nodes = {node.target: node for node in graph.graph.nodes if node.op == "call_module"}
    inserted: dict[str, fx.Node] = {}
    for record in records:
        graph.set_submodule(record.layer, lower_packed(graph.get_submodule(record.layer), weights[record.layer]))
        if record.activation is None:
            continue
        node = nodes[record.layer]
        if record.activation not in inserted:
            graph.add_submodule(record.activation, quantizers[record.activation])
            with graph.graph.inserting_before(node):
                inserted[record.activation] = graph.graph.call_module(record.activation, (node.args[0],))
        node.update_arg(0, inserted[record.activation])
    graph.graph.lint()
    if compiled:
        graph.recompile()


def record_layers(model: SAM2Base, records: Iterable[LayerRecord]) -> None:
    """Let a model with packed weights know what is quantized in it, and refuse float weights in ``load_state_dict``.

    Args:
        model: The model.
        records: All of its quantized layers.
    """
    stage = replace(stage_of(model), layers=tuple(records))
    set_stage(model, stage)
    # torch would copy what fits before it finds what does not. The public hook holds the model, which as_class changes.
    packed = [f"{record.name}.weight" for record in stage.layers]
    model._register_load_state_dict_pre_hook(partial(_refuse_float_weights, packed))


def _refuse_float_weights(packed: list[str], state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    for name in packed:
        if not isinstance(state.get(prefix + name), PackedIntxTensor | None):
            raise CheckpointError(
                f"{name} is a float weight, and the model is converted: its weights are packed codes. Load the float "
                "weights into the float or the prepared model, and convert that"
            )
