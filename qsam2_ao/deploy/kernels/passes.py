"""A deployed part -> a part that runs on the int8 kernels: what is folded into what, as passes over its graph."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam2_utils import DropPath
from torch import Tensor, fx, nn

from ...graph import PartGraph
from ...graph.leaves import AxialRoPE, ScaledDotProductAttention, hiera_pos_embed
from ..packed import PackedIntxTensor
from .attention import Attention, WindowAttention
from .bands import run_in_bands
from .casts import caller_dtype, given_in, to_bfloat16, to_dtype
from .codes import CodeGrid, QuantizeCodes
from .editing import GraphEditor
from .hiera_block import HieraBlock, back, hiera_block, leads_to
from .linear import Int8Conv2d, Int8Linear, build_int8, why_not_int8
from .nonfinite import carry_nonfinite
from .norm import Norm
from .positions import PositionEmbedding, Rotary, SinePosition
from .values import CodeValues, ValueProjection, wide_values

_SDPA = nn.functional.scaled_dot_product_attention


def lower_part(
    part: fx.GraphModule, batch_dim: int = 0, *, in_place: bool = False
) -> tuple[fx.GraphModule, dict[str, str | None]]:
    """Lower the layers of a part that the int8 kernels can run, and what lies between them.

    Args:
        part: A deployed part in eval mode on its device.
        batch_dim: Dimension of its inputs and outputs that counts samples.
        in_place: Change ``part`` itself, whose packed weights are freed one by one then; else it stays as it is.

    Returns:
        The lowered part, which no longer can be saved, and layer name in the graph -> None, or why it was left packed.
        The part computes in bfloat16 between its layers and returns its caller's dtype: that of autocast, else that of
        its first input.

    Example:
        >>> lowered, reasons = lower_part(quantized.image_encoder)
    """
    lowered = _Lowering(part if in_place else PartGraph(part, copy.deepcopy(part.graph), compiled=False))
    lowered.wide_values()
    lowered.layers()
    lowered.window_attention()
    lowered.attention()
    if lowered.device.type == "cpu":
        lowered.rotary()
    lowered.drop_identities()
    lowered.position_embedding()
    lowered.norms()
    lowered.fold_activations(Int8Linear)
    lowered.residuals()
    lowered.fold_codes(Int8Linear, QuantizeCodes, lambda layer, grid: type(layer) is Int8Linear)
    lowered.attended_codes()
    lowered.tokens()
    lowered.dtypes()
    carry_nonfinite(lowered.part, batch_dim)
    if lowered.device.type == "cpu":
        run_in_bands(lowered.part)
    return lowered.finish(), lowered.reasons


class _Lowering(GraphEditor):
    """The graph being changed; one method a pass, in the order of ``lower_part``."""

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__(part)
        self.device = next(part.parameters()).device

    def wide_values(self) -> None:
        """Attention to values that a layer makes wider than its input -> to the input, with the layer behind it."""
        self.drop_unread()
        for sdpa, _ in self.nodes(ScaledDotProductAttention):
            found = wide_values(sdpa, self.module)
            if found is None:
                continue
            layer: Any = self.module(found.layer)
            source, path = found.layer.args[0], str(found.layer.target)
            if isinstance(layer.weight, PackedIntxTensor):
                quantizer = self.quantizer(found.layer)
                if quantizer is not None and why_not_int8(layer, layer.weight, None, quantizer) is None:
                    grid = CodeGrid.of(quantizer)
                    source = self.call(found.layer, "values", CodeValues(grid), self.codes(source, QuantizeCodes))
                    self.set_module(path, ValueProjection(layer, layer.weight, grid))
                    self.reasons[path] = None
            with self.graph.inserting_before(found.merged):
                tokens = self.graph.call_method("contiguous", (source,))
                values = self.graph.call_method("unsqueeze", (tokens, 1))
                attended = self.graph.call_module(str(sdpa.target), (*sdpa.args[:2], values))
                merged = self.graph.call_method("squeeze", (attended, 1))
                projected = self.graph.call_module(path, (merged,))
            found.merged.replace_all_uses_with(projected)
        self.drop_unread()

    def layers(self) -> None:
        """Packed layers behind input quantizers -> int8 layers behind ``QuantizeCodes``."""
        self.packed_layers(why_not_int8, build_int8, QuantizeCodes)

    def window_attention(self) -> None:
        """qkv, reshapes, attention and window partition of a Hiera block -> qkv and ``WindowAttention``."""
        for sdpa in [n for n in self.graph.nodes if n.target is _SDPA]:
            block = hiera_block(sdpa, self.module)
            if block is None:
                continue
            attention = WindowAttention(self.padding(block), block.heads, block.window, block.stride)
            attended = self.call(block.merged, "attention", attention, block.qkv)
            block.merged.replace_all_uses_with(attended)
            if block.partition is not None and block.unpartition is not None:
                block.inside.replace_input_with(block.inside.args[0], block.partition.args[0])  # type: ignore[arg-type]
                block.unpartition.replace_all_uses_with(block.unpartition.args[0])  # type: ignore[arg-type]
        self.drop_unread()

    def padding(self, block: HieraBlock) -> Tensor:
        """What qkv gives for a token of zeros: its bias, and more where no code stands for zero."""
        layer: Any = self.module(block.qkv)
        with torch.no_grad():
            token = torch.zeros(1, 1, 1, layer.in_features, device=layer.weight.device)
            if block.inside is not block.qkv:
                token = self.module(block.inside)(token)  # type: ignore[misc]
            return layer(token).flatten()

    def attention(self) -> None:
        """Any other attention -> the kernel's."""
        for node, module in self.nodes(ScaledDotProductAttention):
            self.set_module(str(node.target), Attention().train(module.training))
        for node in [n for n in self.graph.nodes if n.target is _SDPA and not n.kwargs and len(n.args) == 3]:
            node.replace_all_uses_with(self.call(node, "attention", Attention(), *node.args))
        self.drop_unread()

    def rotary(self) -> None:
        """Rotary encodings that attention in bfloat16 alone reads -> the kernel's."""
        for node, rope in self.nodes(AxialRoPE):
            readers = [reader for part in node.users for reader in part.users]
            if all(isinstance(self.module(reader), Attention) for reader in readers):
                self.set_module(str(node.target), Rotary(rope))

    def drop_identities(self) -> None:
        """Dropout and stochastic depth, which do nothing in eval."""
        for node, _ in self.nodes(nn.Identity) + self.nodes(nn.Dropout) + self.nodes(DropPath):
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            self.graph.erase_node(node)

    def position_embedding(self) -> None:
        """Hiera's, computed once per image size."""
        for node in [n for n in self.graph.nodes if n.target is hiera_pos_embed]:
            embeddings = [_attribute(self.part, str(arg.target)) for arg in node.args[:2]]
            node.replace_all_uses_with(self.call(node, "position", PositionEmbedding(*embeddings), node.args[2]))
        self.drop_unread()

    def norms(self) -> None:
        """Layer normalization, with the rounding to codes behind it."""
        for node, module in self.nodes(nn.LayerNorm):
            if not module.elementwise_affine or len(module.normalized_shape) != 1:
                continue
            coded = [(user, m) for user in node.users if isinstance(m := self.module(user), QuantizeCodes)]
            for user, codes in coded:
                user.replace_all_uses_with(self.call(user, "norm", Norm(module, codes.grid), node.args[0]))
                self.graph.erase_node(user)
            if node.users:
                node.replace_all_uses_with(self.call(node, "norm", Norm(module), node.args[0]))
        self.drop_unread()

    def residuals(self) -> None:
        """Fold an addition into the layer that computes one of its terms, if nothing else reads that term."""
        for node in [n for n in self.graph.nodes if n.target is operator.add]:
            for index in (1, 0):
                term, other = node.args[index], node.args[1 - index]
                if not isinstance(other, fx.Node) or not isinstance(term, fx.Node) or len(term.users) != 1:
                    continue
                if type(self.module(term)) is Int8Linear and len(term.args) == 1:
                    with self.graph.inserting_before(node):
                        fused = self.graph.call_module(str(term.target), (term.args[0], other))
                    self.replace(node, fused)
                    break
                conv = term.args[0] if term.op == "call_method" and term.target == "permute" else None
                # The patch embedding: a convolution whose result is made channels last.
                if (
                    isinstance(conv, fx.Node)
                    and isinstance(self.module(conv), Int8Conv2d)
                    and term.args[1:] == (0, 2, 3, 1)
                    and not _depends(other, conv)
                    and len(conv.users) == 1
                ):
                    with self.graph.inserting_before(node):
                        first = self.graph.call_method("permute", (other, 0, 3, 1, 2))
                        fused = self.graph.call_module(str(conv.target), (conv.args[0], first))
                        fused = self.graph.call_method("permute", (fused, 0, 2, 3, 1))
                    self.replace(node, fused)
                    break

    def attended_codes(self) -> None:
        """Rounding of what an attention gives, behind the merging of its heads too -> into the attention."""
        attentions = dict(self.called_once(Attention) + self.called_once(WindowAttention))
        for node, rounding in self.nodes(QuantizeCodes):
            source: Any = node.args[0]
            while (inside := back(source, "transpose") or back(source, "reshape")) is not None:
                source = inside
            if source in attentions and leads_to(source, node):
                attentions[source].grid = rounding.grid
                self.replace(node, node.args[0])  # type: ignore[arg-type]

    def tokens(self) -> None:
        """An image read as tokens -> laid out as tokens once, not strided in every addition."""
        for node in [n for n in self.graph.nodes if back(back(n, "permute", (0, 2, 1)), "flatten", (2,)) is not None]:
            with self.graph.inserting_after(node):
                tokens = self.graph.call_method("contiguous", (node,))
            node.replace_all_uses_with(tokens, delete_user_cb=lambda user, tokens=tokens: user is not tokens)

    def dtypes(self) -> None:
        """bfloat16 inside, also in front of layers that stay packed or float, and the caller's dtype outside."""
        self.part.keeps_dtypes = True  # type: ignore[assignment]
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        first = next(n for n in self.graph.nodes if n.op != "placeholder")
        with self.graph.inserting_before(first):
            outside = self.graph.call_function(caller_dtype, (placeholders[0],))
            for node in placeholders:
                users = [user for user in node.users if user is not outside]
                rest = [user for user in users if not isinstance(self.module(user), QuantizeCodes)]
                if rest:
                    inside = self.graph.call_function(to_bfloat16, (node,))
                    for user in rest:
                        user.replace_input_with(node, inside)
        for node, encoding in self.nodes(PositionEmbeddingSine):
            kept = self.call(node, "position", SinePosition(encoding), node.args[0], outside)
            for user in [user for user in node.users if user.op == "call_method" and user.target == "to"]:
                user.replace_all_uses_with(kept)
                self.graph.erase_node(user)
            node.replace_all_uses_with(kept)
        for node in list(self.graph.nodes):
            module: Any = self.module(node)
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                self.set_module(str(node.target), _in_bfloat16(module))
                with self.graph.inserting_before(node):
                    node.update_arg(0, self.graph.call_function(to_bfloat16, (node.args[0],)))
        output = next(n for n in self.graph.nodes if n.op == "output")
        cast = given_in if self.device.type == "cpu" else to_dtype
        with self.graph.inserting_before(output):
            output.update_arg(0, self.graph.call_function(cast, (output.args[0], outside)))


def _depends(node: fx.Node, on: fx.Node) -> bool:
    return node is on or any(_depends(argument, on) for argument in node.all_input_nodes)


def _attribute(module: nn.Module, path: str) -> Tensor:
    parent, _, name = path.rpartition(".")
    return getattr(module.get_submodule(parent), name)


def _in_bfloat16(module: Any) -> nn.Module:
    """A layer that stays as it is, with a bias (and a float weight) of the inputs' dtype."""
    other = copy.copy(module)
    other._parameters = dict(module._parameters)
    for name, value in other._parameters.items():
        if value is not None and not isinstance(value, PackedIntxTensor):
            other._parameters[name] = nn.Parameter(value.detach().to(torch.bfloat16), requires_grad=False)
    return other
