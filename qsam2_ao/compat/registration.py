"""What a thread's modules register while they are built, changed on the way: parameters on the meta device, one table.

torch's hooks on registration are the whole process's: they are set under :data:`~.lock.PATCHING` and tell the thread
that set them from the others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Every parameter that this thread's modules register is put on the meta device."""
    thread = threading.get_ident()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if threading.get_ident() != thread or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    # Typed there as returning None, documented as "None or new parameter".
    handle = register_module_parameter_registration_hook(cast(Any, to_meta))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def one_table() -> Iterator[None]:
    """This thread's rotary attention layers share their frequencies where these are equal, copies included."""
    thread = threading.get_ident()
    tables: list[Any] = []

    def share(module: nn.Module, name: str, child: nn.Module | None) -> None:
        if threading.get_ident() != thread or not isinstance(child, RoPEAttention):
            return
        own: Tensor = child.freqs_cis
        known = next((table for table in tables if torch.equal(table, own)), None)
        if known is not None:
            child.freqs_cis = known
            return
        own.__deepcopy__ = lambda memo: own  # type: ignore[method-assign]
        tables.append(own)

    handle = register_module_module_registration_hook(cast(Any, share))
    try:
        yield
    finally:
        handle.remove()
        for table in tables:
            del table.__deepcopy__
