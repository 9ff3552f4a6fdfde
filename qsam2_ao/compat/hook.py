"""Importing modules of other packages inside of a context that repairs them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Repair = Callable[[], AbstractContextManager[None]]


class RepairingFinder(MetaPathFinder):
    """Finds modules as the other finders of ``sys.meta_path`` do, and has them run inside of a repair.

    Args:
        repairs: Full name of a module -> what makes the context that its code runs in. Python imports a module in one
            thread at a time.
    """

    def __init__(self, repairs: Mapping[str, Repair]) -> None:
        self._repairs = repairs
        self._under_way: set[tuple[int, str]] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, but for its loader."""
        search = (threading.get_ident(), fullname)
        if fullname not in self._repairs or search in self._under_way:
            return None
        self._under_way.add(search)  # another finder may ask all others as well, and so this one
        try:
            spec = self._found_by_others(fullname, path, target)
        finally:
            self._under_way.discard(search)
        if spec is not None and spec.loader is not None:
            spec.loader = _RepairingLoader(spec.loader, self._repairs[fullname])
        return spec

    def _found_by_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec"))
        return next((spec for spec in specs if spec is not None), None)


class _RepairingLoader(Loader):
    def __init__(self, loader: Loader, repair: Repair) -> None:
        self._loader, self._repair = loader, repair

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module's resources and sources are found through its own loader.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with self._repair():
            self._loader.exec_module(module)
