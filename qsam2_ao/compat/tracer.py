"""torch.fx's tracer without what it patches for the whole process while it traces.

It replaces ``__call__`` and ``__getattr__`` of ``nn.Module``, and functions in the globals of modules, for every
thread; of two that trace at once, the last restores what the first had put there. Here only the traced modules are
changed, and only for the thread that traces.
"""

from __future__ import annotations

import dis
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import fx, nn
from torch.fx._symbolic_trace import _create_wrapped_func, _wrapped_fns_to_patch
from torch.fx.graph_module import _forward_from_src
from torch.fx.proxy import Attribute

from .rebind import rebound


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that becomes one node of a graph where it is called with proxies, as ``torch.fx.wrap`` makes it.

    Example:
        >>> hiera_pos_embed = recorded(leaves.hiera_pos_embed)
    """
    return _create_wrapped_func(function)


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module that may just be traced."""
    return getattr(type(module), "_own_class", type(module))


@functools.cache
def _unpackings(code: CodeType) -> dict[int, int]:
    """Place of each instruction that unpacks a sequence -> into how many values."""
    return {found.offset: found.argval for found in dis.get_instructions(code) if found.opname == "UNPACK_SEQUENCE"}


class _Proxy(fx.Proxy):
    """A proxy that disassembles each function once, not at every ``batch, height, width = x.shape`` in it."""

    def __iter__(self) -> Iterator[fx.Proxy]:
        frame = sys._getframe(1)
        count = _unpackings(frame.f_code).get(frame.f_lasti)
        return self.tracer.iter(self) if count is None else (self[i] for i in range(count))  # type: ignore[index]

    def __getattr__(self, name: str) -> Attribute:
        return _Attribute(self, name)


class _Attribute(_Proxy, Attribute):
    """An attribute of one."""


class ThreadTracer(fx.Tracer):
    """An FX tracer that other threads do not notice. Functions to be recorded must be :func:`recorded`."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for a node's value."""
        return _Proxy(node, self)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace a module, or the code of a pickled graph."""
        _record_wrapped(type(root).forward)
        trace = rebound(
            fx.Tracer.trace,
            _new_patcher=lambda: _Instances(root),
            _patch_wrapped_functions=lambda patcher: {},
            _autowrap_check=lambda patcher, frame, functions: None,
        )
        return trace(self, root, concrete_args)


def _record_wrapped(forward: Callable[..., Any]) -> None:
    """Record what a graph's own code says is wrapped: it was executed in globals that are nobody else's."""
    own: dict[str, Any] = getattr(forward, "__globals__", {})
    for name in _wrapped(own):
        own[name] = recorded(own[name])


def _wrapped(own: dict[str, Any]) -> list[str]:
    """The names in these globals of which ``torch.fx.wrap`` was told; other threads tell it of theirs meanwhile."""
    return [name for name in list(own) if (id(own), name) in _wrapped_fns_to_patch]


class _CodeTracer(ThreadTracer):
    """Traces the code of a graph, whose modules were nodes there."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Every module stays one node."""
        return True


def read_graph(state: dict[str, Any], imports: str) -> tuple[nn.Module, fx.Graph]:
    """The graph of a pickled ``GraphModule``, which holds its code instead; torch.fx traces that with its own patches.

    Args:
        state: The attributes of the ``GraphModule``.
        imports: What its code imports.

    Returns:
        A module with the attributes, and the graph of its code.
    """
    forward = _forward_from_src(imports + state["_code"], {})
    # Each call of a function was one node. The code says so of functions that were wrapped, not of those that were put
    # into the graph afterwards, which would run with proxies.
    own = forward.__globals__
    wrapped = set(_wrapped(own))
    for name, value in own.items():
        if isinstance(value, FunctionType) and name not in wrapped:
            own[name] = recorded(value)
    root = type("Code", (nn.Module,), {"forward": forward})()
    root.__dict__ = state
    return root, _CodeTracer().trace(root)


class _Instances:
    """Methods of ``nn.Module`` replaced in one module and those below it, for one thread."""

    def __init__(self, root: nn.Module) -> None:
        self._thread = threading.get_ident()
        self._classes = [(module, type(module)) for module in root.modules()]
        self._traced = {own: type(own.__name__, (own,), _attributes(own)) for _, own in self._classes}

    def __enter__(self) -> _Instances:
        for module, own in self._classes:
            module.__class__ = self._traced[own]
        return self

    def __exit__(self, *error: object) -> None:
        for module, own in self._classes:
            module.__class__ = own

    def patch_method(self, cls: type, name: str, method: Callable[..., Any], deduplicate: bool = True) -> None:
        """As torch.fx's patcher has it."""
        for own, traced in self._traced.items():

            def patched(module: Any, *args: Any, own: type = own, **kwargs: Any) -> Any:
                chosen = method if threading.get_ident() == self._thread else getattr(own, name)
                return chosen(module, *args, **kwargs)

            setattr(traced, name, patched)


def _attributes(own: type) -> dict[str, Any]:
    return {"__module__": own.__module__, "__qualname__": own.__qualname__, "_own_class": own}
