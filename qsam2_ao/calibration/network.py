"""calibrate_network: variance-reduced calibration of any network, a module or an exported graph."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torchao.quantization.pt2e import move_exported_model_to_eval

from ..errors import CalibrationError
from ..graph.exported import ExportedLayer, exported_layers
from ..progress import tqdm
from ..quantizers import LSCFakeQuantize
from ..spelling import did_you_mean
from .calibrate import QuantizerFactory, calibrate_layer, is_calibratable, refuse_shared_weights
from .exercise import Model, inference
from .gram import VRCObserver
from .observe import feed, in_chunks, make_observer
from .report import VRCReport

logger = logging.getLogger(__name__)

Run = Callable[[Any, Any], Any]
"""Runs a model on one batch."""


def calibrate_network(
    model: Model,
    batches: Iterable[Any],
    *,
    bits: int = 4,
    quantizers: Mapping[str, QuantizerFactory] | None = None,
    run: Run | None = None,
    damping: float | str = "auto",
    tolerance: float = 0.01,
    max_gram_bytes: int = 1 << 30,
    progress: bool = False,
) -> tuple[Model, VRCReport]:
    """Replace the weights of linear layers and 1x1 convolutions by their variance-reduced ones.

    :func:`~qsam2_ao.calibration.calibrate.calibrate_qsam2` for networks other than SAM2. No labels are needed, and the
    result is still a float model.

    Args:
        model: Any module, or what ``torch.export.export(...).module()`` returns, before it is prepared; it is not
            modified.
        batches: Calibration inputs; gone through once for each ``max_gram_bytes`` of Gram matrices.
        bits: Bit width that ``damping="auto"`` minimises the quantization error at.
        quantizers: Weight quantizer of each layer to calibrate, by name, in place of ``bits``: for an exported graph
            ``QSAM2Quantizer(...).weight_quantizers(graph)``.
        run: What runs the model on a batch. By default a tuple or list is its arguments, and anything else its one
            argument. Exported graphs take no other.
        damping: As for ``calibrate_qsam2``, likewise ``tolerance``.
        tolerance: Largest relative change of a layer's output energy.
        max_gram_bytes: Memory for Gram matrices. Layers beyond it wait for another pass.
        progress: Show a progress bar.

    Returns:
        A calibrated copy of the model, and the report. The output projection of a ``nn.MultiheadAttention``, whose
        inputs torch shows to nobody, keeps its weight.

    Raises:
        CalibrationError: No batch or no such layer, layers that share a weight, a layer that saw no data, or one that
            cannot be solved.
        NonFiniteError: A layer's inputs hold NaN or infinity.

    Example:
        >>> exported = torch.export.export(network.train(), (inputs,)).module()
        >>> calibrated, report = calibrate_network(exported, [inputs], bits=4)
        >>> prepared = prepare_qat_pt2e(calibrated, QSAM2Quantizer("w4a8"))
    """
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader of an iterable has a length that raises
        batches = list(batches)
        count = len(batches)
    if count == 0:
        raise CalibrationError("there are no calibration inputs; give some batches")
    calibrated = copy.deepcopy(model)
    if quantizers is not None:
        _check_names(model, quantizers)
    layers = {name: layer for name, layer in _layers(calibrated).items() if quantizers is None or name in quantizers}
    if quantizers is None:
        for name in [name for name, layer in layers.items() if isinstance(layer, NonDynamicallyQuantizableLinear)]:
            logger.warning("%s keeps its weight: torch's MultiheadAttention reads it without calling the layer", name)
            del layers[name]
    if not layers:
        raise CalibrationError("the network has no linear layer or 1x1 convolution to calibrate")
    refuse_shared_weights(layers)
    factory = LSCFakeQuantize.with_args(bits=bits, is_weight=True)
    report = VRCReport([], images=count)
    chunks = list(in_chunks(layers, max_gram_bytes))
    for chunk in chunks:
        observers = {name: make_observer(name, cast(Tensor, layers[name].weight), count) for name in chunk}
        _observe(model, observers, tqdm(batches, desc="observing", disable=not progress), run)
        for name, observer in observers.items():
            observer.synchronize()
            calibrate_layer(
                name,
                layers[name],
                observer.statistics(),
                factory if quantizers is None else quantizers[name],
                report,
                damping=damping,
                tolerance=tolerance,
            )
    report.passes = len(chunks)
    return calibrated, report


class _Layer(nn.Module):
    """Weight and bias of a layer in an exported graph."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias


def _check_names(model: nn.Module, names: Iterable[str]) -> None:
    known = {name for name, _ in model.named_modules()}
    if isinstance(model, fx.GraphModule):
        known |= {layer.name for layer in exported_layers(model)}
    for name in names:
        if name not in known:
            raise CalibrationError(f"quantizers: the network has no layer {name!r}{did_you_mean(name, known)}")


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """What VRC applies to, by name, with a weight and a bias to be changed in place."""
    modules = {name: module for name, module in model.named_modules() if is_calibratable(module)}
    if modules or not isinstance(model, fx.GraphModule):
        return modules
    found: dict[str, nn.Module] = {}
    if inside := [f"{layer.name} (inside {layer.block})" for layer in exported_layers(model) if layer.block]:
        logger.warning("keep their weights: %s; export the network without these blocks", ", ".join(inside))
    for layer in _calibratable(model):
        bias = layer.node.args[2] if len(layer.node.args) > 2 else None
        weight = _attribute(model, layer.weight)
        found[layer.name] = _Layer(weight, None if bias is None else _attribute(model, bias))
    return found


def _calibratable(graph: fx.GraphModule) -> Iterator[ExportedLayer]:
    """The calls of linear layers and 1x1 convolutions whose weights are parameters."""
    for layer in exported_layers(graph):
        if layer.kind is None or layer.weight.op != "get_attr":
            continue
        if layer.kind is nn.Linear:
            yield layer
        elif layer.kind is nn.Conv2d and _attribute(graph, layer.weight).shape[2:] == (1, 1):
            given: tuple[Any, ...] = layer.node.args[3:]
            stride, padding, _, groups = given + ([1, 1], [0, 0], [1, 1], 1)[len(given) :]
            if stride == [1, 1] and padding in ([0, 0], "valid", "same") and groups == 1:
                yield layer


def _attribute(graph: fx.GraphModule, node: Any) -> Tensor:
    parent, _, name = str(node.target).rpartition(".")
    value: Tensor = getattr(graph.get_submodule(parent), name)
    return value


def _observe(model: nn.Module, observers: dict[str, VRCObserver], batches: Iterable[Any], run: Run | None) -> None:
    modules = dict(model.named_modules())
    if observers.keys() <= modules.keys() and all(is_calibratable(modules[name]) for name in observers):
        hooks = [
            modules[name].register_forward_pre_hook(feed(observer), with_kwargs=True)
            for name, observer in observers.items()
        ]
        try:
            with inference(model):
                for batch in batches:
                    (run or _call)(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        return
    if run is not None:
        raise CalibrationError("an exported graph is run on its inputs alone; leave `run` out")
    graph: Any = copy.deepcopy(model)
    interpreter = _Observing(move_exported_model_to_eval(graph), observers)
    with torch.no_grad():
        for batch in batches:
            _call(interpreter.run, batch)


class _Observing(fx.Interpreter):
    """Runs an exported graph and shows the inputs of its layers to observers."""

    def __init__(self, graph: fx.GraphModule, observers: Mapping[str, VRCObserver]) -> None:
        super().__init__(graph)
        self._observers = {
            layer.node: observers[layer.name] for layer in _calibratable(graph) if layer.name in observers
        }

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if n in self._observers:
            self._observers[n](self.env[n.all_input_nodes[0]])
        return super().run_node(n)


def _call(model: Callable[..., Any], batch: Any) -> Any:
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
