"""Fake-quantizers in the graph of one part: put in by torch.ao's graph mode, and cleaned up."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.ao.quantization import FakeQuantizeBase, NoopObserver, PlaceholderObserver, QConfig, QConfigMapping
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.fx.tracer import QuantizationTracer
from torch.ao.quantization.fx.utils import assert_and_get_unique_device
from torch.ao.quantization.quantize_fx import _prepare_fx, prepare_qat_fx

from .backend_config import QAT_MODULES, qsam2_backend_config
from .compat.rebind import rebound
from .errors import QConfigError, UnsupportedLayerError
from .graph import SINGLE_LAYER, Part, PartGraph
from .graph.tracer import LEAF_CLASSES
from .qconfig import layer_qconfig
from .quantizers import LSCFakeQuantize

_QAT_CLASSES = frozenset(QAT_MODULES.values())


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


def fake_quantize_part(graph: fx.GraphModule, part: Part, mapping: QConfigMapping) -> fx.GraphModule:
    """Put weight and input fake-quantizers into the graph of a part.

    Args:
        graph: A traced part in float. Its modules are reused and changed.
        part: Which part it is.
        mapping: The region's mapping, with layer names as paths in the model.

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
        name: qconfig
        for name, module in graph.named_modules()
        if type(module) in QAT_MODULES
        and (qconfig := layer_qconfig(mapping, part.layer_name(name), module)) is not None
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


def without_input_quantizers(prepared: fx.GraphModule) -> fx.GraphModule:
    """A copy of a fake-quantized graph in which every input is float; it shares the layers and parameters."""
    graph = PartGraph(prepared, copy.deepcopy(prepared.graph))
    for node in list(graph.graph.nodes):
        if _is_quantizer(graph, node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
            graph.delete_submodule(str(node.target))
    graph.recompile()
    return graph.train(prepared.training)


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
        while _is_quantizer(prepared, source):
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
        if _is_quantizer(prepared, node) and node not in kept:
            node.replace_all_uses_with(node.args[0])
            prepared.graph.erase_node(node)
            prepared.delete_submodule(node.target)
    prepared.graph.lint()
    prepared.recompile()


def _is_quantizer(graph: fx.GraphModule, node: Any) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and isinstance(graph.get_submodule(str(node.target)), FakeQuantizeBase)
    )


def _new_quantizer(constructor: Callable[[], nn.Module] | type[nn.Module]) -> FakeQuantizeBase | None:
    module = constructor()
    return module if isinstance(module, FakeQuantizeBase) else None


def _settings(quantizer: FakeQuantizeBase) -> tuple[Any, ...]:
    values = vars(quantizer)
    plain = {k: v for k, v in values.items() if isinstance(v, (int, float, str, bool, type(None)))}
    return (type(quantizer), *sorted((k, str(v)) for k, v in plain.items()))


def _name_quantizers(graph: fx.GraphModule, part: Part) -> None:
    for name, quantizer in fake_quantizers(graph):
        if isinstance(quantizer, LSCFakeQuantize):
            quantizer.name = f"{part.path}.{name.removeprefix(f'{SINGLE_LAYER}.')}"
