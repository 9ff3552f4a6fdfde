from __future__ import annotations

import gc
import itertools
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch

from qsam2_ao.graph import PartGraph


@contextmanager
def others_wrap() -> Iterator[None]:
    """Another thread wraps a function wherever Python may switch to it when a tuple is made."""
    count, threshold = itertools.count(), gc.get_threshold()
    added: list[tuple[int, str]] = []

    def wrap(phase: str, info: dict[str, Any]) -> None:
        if phase == "stop":
            added.append((-1, f"other_{next(count)}"))
            _wrapped_fns_to_patch[added[-1]] = {}

    gc.callbacks.append(wrap)
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(wrap)
        for key in added:
            del _wrapped_fns_to_patch[key]


def test_a_graph_is_read_while_others_wrap_functions() -> None:
    layer = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    stored = pickle.dumps(PartGraph(layer, fx.Tracer().trace(layer)))
    x = torch.randn(1, 2)
    with others_wrap():
        graph = pickle.loads(stored)
    assert torch.equal(graph(x), layer(x))
