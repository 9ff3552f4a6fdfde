"""A part of SAM2 as a graph that keeps what the part and the modules inside it say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any, NoReturn

from torch import Tensor, fx, nn

from ..compat.tracer import read_graph
from ..errors import UnsupportedLayerError


class PartGraph(fx.GraphModule):
    """A graph in which the modules between the part and its layers are still of SAM2's classes.

    A plain ``GraphModule`` has bare modules there, without the attributes and methods that are used from outside:
    ``image_encoder.trunk.get_layer_id``, by which SAM2's trainer decays learning rates, or
    ``image_encoder.neck.backbone_channel_list``. Here they keep class, attributes and methods; called they are an
    error, since what they compute is in the graph. The part itself keeps its attributes.

    Args:
        root: The module that was traced, or another graph of it.
        graph: The graph.
        class_name: What the part is called in its ``repr``; by default as ``root``.
        compiled: Whether it can be called at once; else ``recompile`` must be called when the graph is complete.

    Attributes:
        keeps_dtypes: Whether ``float()``, ``bfloat16()`` and the like leave its tensors as they are: the graph casts
            what its layers read.

    Example:
        >>> graph = SAM2Tracer().trace(model.image_encoder)
        >>> PartGraph(model.image_encoder, graph).trunk.get_num_layers()
        7
    """

    keeps_dtypes: bool = False

    def __init__(
        self, root: nn.Module, graph: fx.Graph, class_name: str | None = None, *, compiled: bool = True
    ) -> None:
        vars(self)["_compiles"] = compiled
        super().__init__(root, graph, class_name or type(root).__name__)
        self._compiles = True
        self.take_over(root)

    def recompile(self) -> Any:
        """Make code of the graph, as ``fx.GraphModule`` does; not in the constructor where that is not wanted."""
        return super().recompile() if self._compiles else None

    def complete(self) -> None:
        """Make the code that was not made so far."""
        if "_code" not in vars(self):
            self.recompile()

    def take_over(self, original: nn.Module) -> None:
        """Keep what another module says of itself: attributes, and the classes of the modules between.

        Hooks before its forward are kept where they have a true ``of_part``; they take keywords.

        Args:
            original: What this is a graph of, or another graph of that.
        """
        for name, value in vars(original).items():
            if not (name.startswith("_") or name == "forward" or name in vars(self)):
                setattr(self, name, value)
        for hook in original._forward_pre_hooks.values():
            if getattr(hook, "of_part", False) and hook not in self._forward_pre_hooks.values():
                self.register_forward_pre_hook(hook, with_kwargs=True)
        _complete(self, original)

    def delete_all_unused_submodules(self) -> None:
        """Delete the layers that the graph does not call; the modules between stay."""
        called = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        for name, module in list(self.named_modules()):
            if name and not _is_shell(module) and not _above(name) & called:
                self.delete_submodule(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply((lambda tensor: tensor.to(fn(tensor).device)) if self.keeps_dtypes else fn, recurse)

    def _deepcopy_init(self) -> Callable[..., None]:
        return partial(PartGraph.__init__, class_name=type(self).__name__)

    def __reduce__(self) -> tuple[Any, ...]:
        _, (body, imports) = super().__reduce__()
        body.pop("_compiled_call_impl", None)  # as nn.Module does
        return _unpickle, (body, imports, type(self).__name__)


def _unpickle(body: dict[Any, Any], imports: str, class_name: str) -> PartGraph:
    return PartGraph(*read_graph(body, imports), class_name)


def _above(name: str) -> set[str]:
    """A module's path, and those of the modules around it."""
    return set(accumulate(name.split("."), "{}.{}".format))


def _complete(module: nn.Module, original: nn.Module, path: str = "") -> None:
    """Put shells in the place of bare modules, and add what nothing in the graph reads, in the original's order."""
    for name, child in list(module._modules.items()):
        other = original._modules.get(name)
        if type(child) is nn.Module and other is not None and type(other) is not nn.Module:
            where = f"{path}.{name}" if path else name
            module._modules[name] = shell = _shell(child, other, where)
            _complete(shell, other, where)
    for kind in ("_parameters", "_buffers", "_modules"):
        own, others = getattr(module, kind), getattr(original, kind)
        complete = {name: own.get(name, value) for name, value in others.items()} | own
        own.clear()
        own.update(complete)


def _shell(bare: nn.Module, original: nn.Module, path: str) -> nn.Module:
    """What ``bare`` holds, in a module of the class of ``original`` with its attributes."""
    shell = type(original).__new__(type(original))
    nn.Module.__init__(shell)
    own = vars(shell)
    own.update({name: value for name, value in vars(original).items() if name not in own})
    own.update({name: getattr(bare, name) for name in ("_parameters", "_buffers", "_modules", "training")})
    own["forward"] = partial(_refuse, type(original).__name__, path)
    return shell


def _is_shell(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func is _refuse


def _refuse(kind: str, path: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise UnsupportedLayerError(
        f"{path} ({kind}) cannot be called by itself: what it computes is in the graph of its part; call the part"
    )
