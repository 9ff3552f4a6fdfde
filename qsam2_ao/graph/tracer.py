"""Symbolic tracing of one part of SAM2 into an FX graph, with its parameters under their original names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sam2.modeling.backbones.hieradet import Hiera, MultiScaleAttention, MultiScaleBlock
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.backbones.utils import PatchEmbed
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import Attention, RoPEAttention, TwoWayAttentionBlock, TwoWayTransformer
from sam2.modeling.sam2_utils import MLP, DropPath, LayerNorm2d
from torch import fx, nn

from ..compat.lock import PATCHING
from ..compat.tracer import ThreadTracer, own_class
from ..errors import GraphTraceError
from .forwards import FORWARDS
from .leaves import AxialRoPE, ScaledDotProductAttention
from .part_graph import PartGraph
from .single import graph_of

# One node each in a graph: they hold control flow on shapes or on `training`, or are better kept whole.
LEAF_CLASSES: tuple[type[nn.Module], ...] = (
    LayerNorm2d,
    DropPath,
    PositionEmbeddingSine,
    ScaledDotProductAttention,
    AxialRoPE,
)

# Traced through: by their own forward, or by the one in FORWARDS.
_TRACED_CLASSES: frozenset[type[nn.Module]] = frozenset(
    {
        *(ImageEncoder, FpnNeck, Hiera, PatchEmbed, MultiScaleBlock, MultiScaleAttention),
        *(MemoryAttention, MemoryAttentionLayer, MemoryEncoder, MaskDownSampler, Fuser, CXBlock),
        *(TwoWayTransformer, TwoWayAttentionBlock, Attention, RoPEAttention, MLP),
    }
)


class SAM2Tracer(ThreadTracer):
    """An FX tracer that knows SAM2's classes and refuses those that it does not know."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` stays one node."""
        return own_class(m) in LEAF_CLASSES or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Trace the root by its traceable forward where it has one."""
        return super().create_args_for_root(FORWARDS.get(type(self.root), root_fn), is_module, concrete_args)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a submodule by its traceable forward where it has one."""
        replacement = FORWARDS.get(own_class(m))
        return super().call_module(m, partial(replacement, m) if replacement else forward, args, kwargs)


def trace_part(module: nn.Module, path: str, *, compiled: bool = True) -> fx.GraphModule:
    """Trace one part of SAM2 into a graph that computes the same to the bit, in eval and in train mode.

    Args:
        module: The part, for example ``model.image_encoder``; it is not changed, and the graph shares its
            parameters and submodules. A lone layer becomes a graph around a submodule named ``layer``.
        path: The part's name in the model, for error messages.
        compiled: As for :class:`PartGraph`.

    Returns:
        A graph with the arguments of ``module.forward`` and the part's parameters under their own names. It
        takes any input size, batch size and number of memory tokens that the module takes.

    Raises:
        GraphTraceError: A module of a class that the tracer does not know, or one that cannot be traced,
            naming the module, its class and the reason.

    Example:
        >>> graph = trace_part(model.image_encoder, "image_encoder")
        >>> features = graph(x)["vision_features"]  # x: [B, 3, S, S] float
    """
    _check_classes(module, path)
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return graph_of(module, compiled=compiled)
    tracer = SAM2Tracer()
    # Two threads may trace modules that share some below them.
    with PATCHING, _leaves_attached(module):
        try:
            graph = tracer.trace(module)
            for node in graph.nodes:
                node.type = None  # annotations kept as text cannot be pickled
            traced = PartGraph(module, graph, compiled=compiled)
        except Exception as error:
            raise GraphTraceError(
                f"{path} ({type(module).__name__}) cannot be traced: {type(error).__name__}: {error}"
            ) from error
    return traced.train(module.training)


def _check_classes(module: nn.Module, path: str) -> None:
    for name, child in module.named_modules():
        if (
            type(child) in _TRACED_CLASSES
            or type(child) in LEAF_CLASSES
            or type(child).__module__.startswith("torch.nn.")
        ):
            continue
        where = f"{path}.{name}" if name else path
        reason = (
            "it is a graph already; start from the float model"
            if isinstance(child, fx.GraphModule)
            else "the tracer knows the classes of the sam2 package only, and a subclass may compute something else"
        )
        raise GraphTraceError(
            f"{where} is a {type(child).__module__}.{type(child).__qualname__}, which cannot be traced: {reason}. "
            "Leave its region out of the qconfig to keep it in float."
        )


@contextmanager
def _leaves_attached(module: nn.Module) -> Iterator[None]:
    """Give attention modules the leaf modules that their traceable forwards call."""
    attentions = [m for m in module.modules() if isinstance(m, Attention)]
    try:
        for attention in attentions:
            attention.sdpa = ScaledDotProductAttention.of(attention)
            if isinstance(attention, RoPEAttention):
                attention.rope = AxialRoPE.of(attention)
        yield
    finally:
        for attention in attentions:
            attention._modules.pop("sdpa", None)
            attention._modules.pop("rope", None)
