"""Importing sam2 initialises Hydra, after which no program can: here that gives way to the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.global_hydra import GlobalHydra


class _GivesWay(GlobalHydra):
    """Hydra as sam2's import leaves it, until somebody initialises it on purpose."""

    def initialize(self, hydra: Any) -> None:
        self.__class__ = GlobalHydra
        self.clear()
        self.initialize(hydra)


@contextmanager
def initialised_by_default() -> Iterator[None]:
    """Let what the block initialises Hydra with be replaced by the next who initialises it, without an error.

    ``sam2.build_sam`` finds its configs as before; and a launcher that imports qsam2_ao, which imports sam2, can still
    call ``hydra.initialize_config_module``. Where Hydra is initialised already nothing changes.
    """
    mine = not GlobalHydra.instance().is_initialized()
    yield
    instance = GlobalHydra.instance()
    if mine and instance.is_initialized() and type(instance) is GlobalHydra:
        instance.__class__ = _GivesWay
