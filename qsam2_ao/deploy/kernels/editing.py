"""Changing the graph of a part to one whose layers multiply codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from ..heap import TRIM_EVERY, trim_heap
from ..inputs import ActivationQuantizer
from ..packed import PackedIntxTensor
from .activations import activation_name
from .codes import CodeGrid
from .hiera_block import only_user

WhyNot = Callable[[nn.Module, PackedIntxTensor, None, ActivationQuantizer | None], str | None]
"""Of a layer, its weight, the device that this is on, and the quantizer of its input: why it cannot be lowered."""


class GraphEditor:
    """A graph being changed, and what became of its layers.

    Attributes:
        part: The graph's module, which is changed too.
        graph: The graph.
        modules: The modules that it calls, by path.
        reasons: Layer -> None, or why it stayed as it was.
    """

    def __init__(self, part: fx.GraphModule) -> None:
        # Layers that a pass changes are replaced: another graph may share them.
        self.part = part
        self.graph = part.graph
        self.modules = dict(part.named_modules(remove_duplicate=False))
        self.reasons: dict[str, str | None] = {}
        self._added = 0
        self._coded: dict[fx.Node, fx.Node] = {}

    def finish(self) -> fx.GraphModule:
        """The part, ready to run."""
        self.drop_unread()
        self.part.delete_all_unused_submodules()
        self.graph.lint()
        self.part.recompile()
        return self.part.eval()

    def drop_unread(self) -> None:
        """Erase what nobody reads: all nodes are pure, so that torch.fx's slower search has nothing else to find."""
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)

    def module(self, node: Any) -> nn.Module | None:
        """What a node calls, if that is a module."""
        return self.modules[str(node.target)] if isinstance(node, fx.Node) and node.op == "call_module" else None

    def set_module(self, path: str, module: nn.Module) -> None:
        """Put a module in another's place, or at a new one."""
        self.part.set_submodule(path, module)
        self.modules[path] = module

    def nodes(self, kind: type[nn.Module]) -> list[tuple[fx.Node, Any]]:
        """The calls of modules of a kind, with the modules."""
        return [(n, m) for n in self.graph.nodes if isinstance(m := self.module(n), kind)]

    def call(self, before: fx.Node, name: str, module: nn.Module, *args: Any) -> fx.Node:
        """Insert a call of a new module, which reports of errors and profiles will know as `name`."""
        path = f"{name}_{self._added}"
        self._added += 1
        self.set_module(path, module)
        with self.graph.inserting_before(before):
            return self.graph.call_module(path, args)

    def replace(self, node: fx.Node, new: fx.Node) -> None:
        """Put a node in another's place, and erase what nobody reads any more."""
        node.replace_all_uses_with(new)
        unread = [node]
        while unread:
            old = unread.pop()
            if not old.users and old.op != "placeholder":
                inputs = old.all_input_nodes
                self.graph.erase_node(old)
                unread += inputs

    def quantizer(self, node: fx.Node) -> ActivationQuantizer | None:
        """What rounds the input of a layer, if anything does."""
        quantizer = self.module(node.args[0])
        return quantizer if isinstance(quantizer, ActivationQuantizer) else None

    def codes(self, source: Any, make: Callable[[CodeGrid], nn.Module]) -> fx.Node:
        """The codes in the place of what a call of a quantizer gives, made once for all that read them."""
        quantizer = self.module(source)
        assert isinstance(quantizer, ActivationQuantizer)
        if source not in self._coded:
            self._coded[source] = self.call(source, "codes", make(CodeGrid.of(quantizer)), source.args[0])
        return self._coded[source]

    def packed_layers(
        self,
        why_not: WhyNot,
        build: Callable[[Any, PackedIntxTensor, ActivationQuantizer], nn.Module],
        make_codes: Callable[[CodeGrid], nn.Module],
    ) -> None:
        """Packed layers behind input quantizers -> lowered ones behind what makes codes."""
        unpacked = 0
        for node in list(self.graph.nodes):
            module: Any = self.module(node)
            if not isinstance(getattr(module, "weight", None), PackedIntxTensor):
                continue
            name, quantizer = str(node.target), self.quantizer(node)
            self.reasons[name] = why_not(module, module.weight, None, quantizer)
            if quantizer is None or self.reasons[name] is not None:
                continue
            self.set_module(name, build(module, module.weight, quantizer))
            node.update_arg(0, self.codes(node.args[0], make_codes))
            unpacked += module.weight.numel()
            if unpacked >= TRIM_EVERY:
                trim_heap()
                unpacked = 0
        self.drop_unread()

    def called_once(self, kind: type[nn.Module]) -> list[tuple[fx.Node, Any]]:
        """The layers of a kind that one node calls, which can take over what follows them."""
        calls = Counter(node.target for node in self.graph.nodes if node.op == "call_module")
        return [(node, layer) for node, layer in self.nodes(kind) if calls[node.target] == 1]

    def fold_activations(self, kind: type[nn.Module]) -> None:
        """GELU and ReLU -> into the layer before them."""
        for node, layer in self.called_once(kind):
            user = only_user(node)
            if user is not None and (name := activation_name(user, self.module(user))) is not None:
                layer.activation = name
                user.replace_all_uses_with(node)
                self.graph.erase_node(user)

    def fold_codes(self, kind: type[nn.Module], codes: type[nn.Module], fits: Callable[[Any, CodeGrid], bool]) -> None:
        """Let a layer round its own output, if its rounded output is all that is read."""
        for node, layer in self.called_once(kind):
            user = only_user(node)
            if user is None or not isinstance(self.module(user), codes):
                continue
            rounding: Any = self.module(user)
            if fits(layer, rounding.grid):
                layer.grid = rounding.grid
                user.replace_all_uses_with(node)
                self.graph.erase_node(user)
