"""Functions of other packages with other globals: what a patch of their module would do, for one call of one thread."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any


def rebound(function: Callable[..., Any], **names: Any) -> types.FunctionType:
    """A copy of a function that finds other objects under some names of its module.

    The module, and whoever else calls the function meanwhile, see no difference.

    Args:
        function: A function written in Python; what decorators that keep ``__wrapped__`` put around it is left out.
        **names: Global names of the function's module, and what the copy finds there instead.

    Returns:
        The copy.

    Raises:
        AttributeError: The module has no such name, so that the copy would be no other.

    Example:
        >>> def area(radius):
        ...     return math.pi * radius**2
        >>> rebound(area, math=SimpleNamespace(pi=3))(2)
        12
    """
    inner = inspect.unwrap(function)
    assert isinstance(inner, types.FunctionType)
    for name in names:
        if name not in _names(inner.__code__) or name not in inner.__globals__:
            raise AttributeError(f"{inner.__module__}.{inner.__qualname__} reads no global name {name!r}")
    copy = types.FunctionType(
        inner.__code__, {**inner.__globals__, **names}, inner.__name__, inner.__defaults__, inner.__closure__
    )
    copy.__kwdefaults__ = inner.__kwdefaults__
    return copy


def _names(code: types.CodeType) -> set[str]:
    """What a function and those inside of it read."""
    inside = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inside)
