"""Fake-quantizers in the graphs of a model's parts: put in by torch.ao's graph mode, and cleaned up."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import fx, nn
from torch.ao.quantization import FakeQuantizeBase, NoopObserver, PlaceholderObserver, QConfig, QConfigMapping
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.fx.tracer import QuantizationTracer
from torch.ao.quantization.fx.utils import assert_and_get_unique_device
from torch.ao.quantization.quantize_fx import _prepare_fx, prepare_qat_fx

from ..compat.rebind import rebound
from ..errors import QConfigError, UnsupportedLayerError
from ..graph import SINGLE_LAYER, Part, PartGraph, as_part, trace_part
from ..graph.tracer import LEAF_CLASSES
from ..quantizers import LSCFakeQuantize, RangedFakeQuantize
from .backend import QAT_MODULES, qsam2_backend_config
from .prepared import code_range, fake_quantizers, is_per_tensor, is_quantizer, layer_nodes, quantized_layers
from .resolve import LayerRecipe


class _AsTraced(QuantizationTracer):
    """Takes the graph that a module has already: torch.fx patches modules of all threads while it traces."""

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """A copy of the graph of ``root``."""
        self.node_name_to_scope: dict[str, Any] = {node.name: ("", None) for node in root.graph.nodes}
        for node in root.graph.find_nodes(op="call_module"):
            self.node_name_to_scope[node.name] = (str(node.target), type(root.get_submodule(str(node.target))))
        return copy.deepcopy(root.graph)


# Beneath the decorator that warns of its deprecation, and for the whole process.
_prepare_traced = rebound(prepare_qat_fx, _prepare_fx=rebound(_prepare_fx, QuantizationTracer=_AsTraced))


def insert_fake_quantizers(model: SAM2Base, recipe: Mapping[str, LayerRecipe]) -> dict[str, Any]:
    """Turn the parts of a model that a recipe quantizes into fake-quantized graphs, in place.

    Args:
        model: A float model, changed.
        recipe: Name -> recipe of the layers to quantize, from :func:`~qsam2_ao.recipe.resolve.resolve_recipe`.

    Returns:
        Name -> layer whose weight is fake-quantized, under the name that it had in the float model.

    Raises:
        QConfigError: A layer's QConfig that cannot be trained, naming the layer.
        GraphTraceError: A part cannot be traced.
        UnsupportedLayerError: A layer that its part calls more than once.
    """
    layers: dict[str, Any] = {}
    for part in dict.fromkeys(layer.part for layer in recipe.values()):
        graph = fake_quantize_part(trace_part(model.get_submodule(part.path), part.path), part, recipe)
        model.set_submodule(part.path, as_part(graph))
        layers.update({part.layer_name(name): layer for name, layer in quantized_layers(graph)})
    for name, quantizer in fake_quantizers(model):
        if isinstance(quantizer, RangedFakeQuantize):
            quantizer.name = name
    return layers


def fake_quantize_part(graph: fx.GraphModule, part: Part, recipe: Mapping[str, LayerRecipe]) -> fx.GraphModule:
    """Put weight and input fake-quantizers into the graph of a part.

    Args:
        graph: A traced part in float. Its modules are reused and changed.
        part: Which part it is.
        recipe: Name in the model -> recipe of the layers to quantize, those of other parts included or not.

    Returns:
        The graph with ``torch.ao.nn.qat`` layers and input quantizers named ``input_quantizer_<k>``; layers that
        read the same tensor with the same settings share one. In the mode (train or eval) of ``graph``.

    Raises:
        QConfigError: A layer's QConfig is not one for training, quantizes inputs dynamically or per channel, or has
            more than 8 bits, naming the layer.
        UnsupportedLayerError: A layer that the graph calls more than once.
    """
    training = graph.training
    qconfigs = {
        name: recipe[part.layer_name(name)].qconfig
        for name, module in graph.named_modules()
        if type(module) in QAT_MODULES and part.layer_name(name) in recipe
    }
    if not qconfigs:
        return graph
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    local = QConfigMapping()
    for name, qconfig in qconfigs.items():
        if calls[name] > 1:
            raise UnsupportedLayerError(
                f"{part.layer_name(name)} is called {calls[name]} times in its graph; a quantized layer has one input. "
                "Set its QConfig to None to keep it in float."
            )
        qconfigs[name] = _checked_qconfig(qconfig, part.layer_name(name))
        local.set_module_name(name, qconfigs[name])
    leaves = PrepareCustomConfig().set_non_traceable_module_classes(list(LEAF_CLASSES))
    prepared = _prepare_traced(
        graph.train(), local, (), prepare_custom_config=leaves, backend_config=qsam2_backend_config()
    )
    # torch.ao remembers the device of its last 128 models, and with it the models.
    assert_and_get_unique_device.cache_clear()
    _settle_input_quantizers(prepared, qconfigs)
    for _, layer in quantized_layers(prepared):
        # Only torch.ao's conversion reads it, and its constructors cannot be pickled.
        del layer.qconfig
    cleaned = PartGraph(prepared, prepared.graph, type(graph).__name__)
    cleaned.take_over(graph)
    _name_quantizers(cleaned, part)
    # torch.ao makes its quantizers on the CPU.
    return cleaned.to(next(graph.parameters()).device).train(training)


def _checked_qconfig(qconfig: QConfig, where: str) -> QConfig:
    """Refuse what torch.ao would leave in float without a word, or what no backend could hold.

    Returns:
        The QConfig, with torch.ao's one way to say that the input stays in float.
    """
    weight, activation = _made(qconfig, "weight", where), _made(qconfig, "activation", where)
    if not isinstance(weight, FakeQuantizeBase):
        raise QConfigError(
            f"{where}: its QConfig makes a {type(weight).__name__} for the weight; training needs a fake-quantizer "
            "there: choose lsc_qconfig(4, 8), or a QConfig of torch.ao for quantization-aware training, as "
            "get_default_qat_qconfig()"
        )
    code_range(weight, where)
    if not is_per_tensor(weight) and weight.ch_axis != 0:
        raise QConfigError(
            f"{where}: its QConfig gives the weight one scale per index of dimension {weight.ch_axis}; packed weights "
            "have one per output channel (ch_axis=0)"
        )
    for which, quantizer, is_weight in (("weight", weight, True), ("input", activation, False)):
        if getattr(quantizer, "is_weight", is_weight) != is_weight:
            raise QConfigError(f"{where}: the quantizer of the {which} must be made with is_weight={is_weight}")
    if getattr(activation, "is_dynamic", False):
        raise QConfigError(
            f"{where}: its QConfig quantizes the input dynamically (a new range for every batch), and this package "
            "deploys the ranges that training learned; choose lsc_qconfig(8, 8) or default_qat_qconfig for such "
            "ranges, or default_weight_only_qconfig to keep inputs in float"
        )
    if isinstance(activation, FakeQuantizeBase):
        code_range(activation, where)
        if not is_per_tensor(activation):
            raise QConfigError(
                f"{where}: its QConfig quantizes the input per channel; inputs have one scale: choose a fake-quantizer "
                "per tensor, as default_fake_quant"
            )
        return qconfig
    if isinstance(activation, nn.Identity) or (
        isinstance(activation, (PlaceholderObserver, NoopObserver)) and activation.dtype == torch.float
    ):
        return QConfig(activation=PlaceholderObserver, weight=qconfig.weight)
    dtype = getattr(activation, "dtype", None)
    raise QConfigError(
        f"{where}: its QConfig makes a {type(activation).__name__} for the input{f' ({dtype})' if dtype else ''}; "
        "training needs a fake-quantizer there, or a PlaceholderObserver (of float32) to keep the input as it is"
    )


def _made(qconfig: QConfig, which: str, where: str) -> Any:
    """What a QConfig makes for "weight" or "activation"."""
    constructor = getattr(qconfig, which)
    try:
        return constructor()
    except Exception as error:
        raise QConfigError(
            f"{where}: its QConfig's {which} ({constructor!r}) makes no fake-quantizer: {error}; choose "
            "lsc_qconfig(4, 8) for example"
        ) from error


def _settle_input_quantizers(prepared: fx.GraphModule, qconfigs: dict[str, QConfig]) -> None:
    """Keep fake-quantizers in front of quantized layers only, each with the settings that its layer asks for.

    torch.ao also puts one behind every quantized layer, which would quantize residuals, attention and
    normalization; and it lets layers share one whenever the dtypes agree, whatever their bits.
    """
    nodes = layer_nodes(prepared)
    settled: dict[tuple[fx.Node, tuple[Any, ...]], fx.Node] = {}
    kept: list[fx.Node] = []
    for name in [n.target for n in prepared.graph.nodes if n.op == "call_module" and n.target in qconfigs]:
        node, wanted = nodes[name], _new_quantizer(qconfigs[name].activation)
        source: Any = node.args[0]
        while is_quantizer(prepared, source):
            source = source.args[0]
        if wanted is None:
            node.update_arg(0, source)
            continue
        key = (source, _settings(wanted))
        if key not in settled:
            target = f"input_quantizer_{len(kept)}"
            prepared.add_submodule(target, wanted)
            with prepared.graph.inserting_before(node):
                settled[key] = prepared.graph.call_module(target, (source,))
            kept.append(settled[key])
        node.update_arg(0, settled[key])
    for node in reversed(list(prepared.graph.nodes)):
        if is_quantizer(prepared, node) and node not in kept:
            node.replace_all_uses_with(node.args[0])
            prepared.graph.erase_node(node)
            prepared.delete_submodule(node.target)
    prepared.graph.lint()
    prepared.recompile()


def _new_quantizer(constructor: Callable[[], nn.Module] | type[nn.Module]) -> FakeQuantizeBase | None:
    module = constructor()
    return module if isinstance(module, FakeQuantizeBase) else None


def _settings(quantizer: FakeQuantizeBase) -> tuple[Any, ...]:
    """Its own, and those of the observer in it."""
    plain = (int, float, str, bool, type(None), torch.dtype, torch.qscheme)
    return tuple(
        (type(module), *((k, str(v)) for k, v in sorted(vars(module).items()) if isinstance(v, plain)))
        for module in quantizer.modules()
    )


def _name_quantizers(graph: fx.GraphModule, part: Part) -> None:
    for name, quantizer in fake_quantizers(graph):
        if isinstance(quantizer, LSCFakeQuantize):
            quantizer.name = f"{part.path}.{name.removeprefix(f'{SINGLE_LAYER}.')}"
