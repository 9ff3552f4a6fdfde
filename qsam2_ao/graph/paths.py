"""Paths of modules: names with dots, as ``named_modules`` gives them."""

from __future__ import annotations


def is_inside(path: str, *parents: str) -> bool:
    """Whether a module is, or is inside, one of some others.

    Args:
        path: The module's path.
        *parents: Paths of the others.

    Example:
        >>> is_inside("trunk.blocks.1.proj", "trunk.blocks.1"), is_inside("trunk.blocks.10", "trunk.blocks.1")
        (True, False)
    """
    return f"{path}.".startswith(tuple(f"{parent}." for parent in parents))
