"""QSAM2Quantizer: this package's recipes as a quantizer of torchao's PT2E flow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.ao.quantization import NoopObserver, PlaceholderObserver, QConfig
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from ..errors import QConfigError
from ..graph.exported import ExportedLayer, exported_layers
from ..graph.regions import region_of
from ..quantizers import LSCFakeQuantize
from ..quantizers.integers import integer_codes
from ..quantizers.pt2e import constant_value
from ..recipe import QConfigLike, layer_qconfig, resolve_qconfig
from ..recipe.rules import rules_of

logger = logging.getLogger(__name__)

# A rule that keeps a type in float is right for a network without that type, too.
_FLOAT_TYPE = ("object_type", None)


class QSAM2Quantizer(Quantizer):
    """Fake-quantize the weights and inputs of the linear layers and convolutions of an exported network by LSC.

    As in ``prepare_qsam2``, everything else stays float. Layers that read the same tensor with the same settings
    share one input quantizer. Weight ranges start from the weights at once; input ranges from the first batch in
    training, or from what :func:`~qsam2_ao.quantizers.calibrating` sees.

    Args:
        qconfig: What ``prepare_qsam2`` takes: a preset's name, a ``QConfig``, a ``QConfigMapping``, or a mapping from
            region to one of those. Names are the layers' paths below ``path``.
        path: Where the exported module is in its SAM2 model, for example "image_encoder.trunk": the presets' first and
            last layers and the regions are known by their paths in SAM2. Empty for any other network.

    Attributes:
        annotated: Names of the layers that were annotated last, in the order of their calls.
        left_in_float: Name -> reason of every operation with a weight that was not.

    Raises:
        QConfigError: An unknown preset or region; when annotating, a rule that matches no layer, or a quantizer that
            PT2E cannot hold, naming the layer.

    Example:
        >>> features = torch.randn(1, model.hidden_dim, 6, 6)
        >>> exported = torch.export.export(model.memory_encoder.fuser.train(), (features,)).module()
        >>> prepared = prepare_qat_pt2e(exported, QSAM2Quantizer("w4a8", path="memory_encoder.fuser"))
        >>> loss = prepared(features).square().mean()  # and train it
        >>> converted = convert_pt2e(prepared)
    """

    def __init__(self, qconfig: QConfigLike = "w8a8", *, path: str = "") -> None:
        super().__init__()
        self._recipe = resolve_qconfig(qconfig)
        self._by_region = isinstance(qconfig, Mapping)
        self.path = path
        self.annotated: tuple[str, ...] = ()
        self.left_in_float: dict[str, str] = {}

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Write into the graph what is to be quantized, and how.

        Args:
            model: An exported module.

        Returns:
            The same.
        """
        layers = exported_layers(model, self.path)
        self._check_rules(layers)
        self.left_in_float = {}
        shared: dict[Any, tuple[fx.Node, fx.Node]] = {}
        annotated = []
        for layer in layers:
            qconfig, reason = self._choose(layer)
            if qconfig is None:
                self.left_in_float[layer.name] = reason
                continue
            if layer.weight.meta["val"].dtype == torch.float64:
                raise QConfigError(
                    f"{layer.name} is float64, which convert_pt2e refuses; export the network in float32"
                )
            specs: dict[fx.Node, Any] = {layer.input: None}  # torchao counts on the input coming first
            for source, constructor in ((layer.input, qconfig.activation), (layer.weight, qconfig.weight)):
                spec = _spec(constructor, source is layer.weight, layer.name)
                if spec is None:
                    continue
                key = (source, *spec[0])
                specs[source] = SharedQuantizationSpec(shared[key]) if key in shared else spec[1]
                shared.setdefault(key, (source, layer.node))
            layer.node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                input_qspec_map=specs, allow_implicit_sharing=False, _annotated=True
            )
            annotated.append(layer.name)
        self.annotated = tuple(annotated)
        if self.left_in_float:
            logger.warning(
                "left in float: %s", "; ".join(f"{name} ({reason})" for name, reason in self.left_in_float.items())
            )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Refuse a graph in which nothing was annotated.

        Args:
            model: The annotated graph.
        """
        if not self.annotated:
            raise QConfigError(
                "no linear layer or convolution of the exported graph is to be quantized: "
                + ("; ".join(f"{name}: {why}" for name, why in self.left_in_float.items()) or "it has none")
            )

    def prepare_obs_or_fq_callback(self, model: fx.GraphModule, edge_or_node_to_obs_or_fq: dict[Any, Any]) -> None:
        """Name the quantizers after their layers, and start those of weights.

        Args:
            model: The graph.
            edge_or_node_to_obs_or_fq: What torchao made for each annotated edge.
        """
        names = {layer.node: layer.name for layer in exported_layers(model, self.path)}
        for edge, quantizer in edge_or_node_to_obs_or_fq.items():
            if not isinstance(edge, tuple) or not isinstance(quantizer, LSCFakeQuantize) or quantizer.name:
                continue
            source, user = edge
            quantizer.name = names.get(user, str(user))
            if quantizer.is_weight:
                weight = constant_value(model, source)
                assert weight is not None
                quantizer.initialize(weight)

    def weight_quantizers(self, model: fx.GraphModule) -> dict[str, Callable[[], Any]]:
        """What makes the weight quantizer of each layer to be quantized, for ``calibrate_network``.

        Args:
            model: An exported module.

        Returns:
            Name in the exported module, without ``path`` -> constructor.
        """
        names = [layer.name for layer in exported_layers(model)]
        chosen = [self._choose(layer)[0] for layer in exported_layers(model, self.path)]
        return {name: qconfig.weight for name, qconfig in zip(names, chosen, strict=True) if qconfig is not None}

    def _choose(self, layer: ExportedLayer) -> tuple[QConfig | None, str]:
        """A layer's QConfig, or None and why."""
        if layer.kind is None:
            inside = f" inside {layer.block}; export the network without that block" if layer.block else ""
            return None, f"{layer.node.target} is not quantized{inside}"
        if Q_ANNOTATION_KEY in layer.node.meta:
            return None, "annotated before by another quantizer"
        if self._by_region:
            region = region_of(layer.name)
            if region not in self._recipe:
                return None, f"in no region of the recipe ({', '.join(self._recipe)})"
            mapping = self._recipe[region]
        else:
            mapping = next(iter(self._recipe.values()))
        return layer_qconfig(mapping, layer.name, layer.kind), "its QConfig is None"

    def _check_rules(self, layers: list[ExportedLayer]) -> None:
        """Refuse rules that match nothing; for a part of a model they may be meant for other parts, and are logged."""
        regions = {region_of(layer.name) for layer in layers}
        kinds = [(layer.name, layer.kind) for layer in layers]
        unused = [
            str(rule)
            for region, mapping in self._recipe.items()
            if not self._by_region or region in regions
            for rule in rules_of(mapping)
            if not rule.selects(kinds) and not rule.is_of_a_preset and (rule.kind, rule.qconfig) != _FLOAT_TYPE
        ]
        if not unused:
            return
        message = f"match no layer of the exported graph: {', '.join(dict.fromkeys(unused))}"
        if not self.path:
            raise QConfigError(f"these rules {message}; its layers are {', '.join(layer.name for layer in layers)}")
        logger.warning("rules of the qconfig that %s", message)


def _spec(
    constructor: Callable[[], Any], is_weight: bool, name: str
) -> tuple[tuple[Any, ...], QuantizationSpec] | None:
    """What two quantizers must have in common to be one, and torchao's words for it; None to keep it in float."""
    quantizer = constructor()
    if not is_weight and isinstance(quantizer, (PlaceholderObserver, NoopObserver, nn.Identity)):
        return None
    which = "weight" if is_weight else "input"
    if not isinstance(quantizer, LSCFakeQuantize):
        raise QConfigError(
            f"{name}: its QConfig makes a {type(quantizer).__name__} for the {which}; QSAM2Quantizer takes "
            "LSCFakeQuantize, as from lsc_qconfig(4, 8); for torchao's quantizers use torchao's Quantizer classes"
        )
    if quantizer.is_weight is not is_weight:
        raise QConfigError(f"{name}: the quantizer of its {which} has is_weight={quantizer.is_weight}")
    if quantizer.granularity == "group":
        raise QConfigError(f"{name}: convert_pt2e has no scales per group; choose granularity='channel'")
    one = torch.ones(1)
    integer_codes(quantizer._grid, one, one, quantizer.code_dtype, name)  # refuses what int8 cannot hold
    settings = (quantizer.bits, quantizer.grid, quantizer.granularity, quantizer.momentum, quantizer.stats_momentum)
    return settings, QuantizationSpec(
        dtype=quantizer.code_dtype,
        observer_or_fake_quant_ctr=constructor,
        quant_min=quantizer.quant_min,
        quant_max=quantizer.quant_max,
        qscheme=quantizer.qscheme,
        ch_axis=None if quantizer.granularity == "tensor" else 0,
    )
