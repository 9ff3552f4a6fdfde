"""The activation functions that layers can take over."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

_NAMES: dict[Any, str] = {
    nn.GELU: "gelu",
    nn.ReLU: "relu",
    nn.functional.gelu: "gelu",
    nn.functional.relu: "relu",
}


def activation_name(node: fx.Node, module: nn.Module | None) -> str | None:
    """What kernels call an activation.

    Args:
        node: A call.
        module: What it calls; None if that is a function.

    Returns:
        "gelu" or "relu", or None for another call, and for an approximate GELU.
    """
    name = _NAMES.get(node.target if node.op == "call_function" else type(module))
    exact = getattr(module, "approximate", node.kwargs.get("approximate", "none")) == "none"
    return name if exact else None
