"""One fake quantization of a weight for all of its uses in a training step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class SharedOutput:
    """The quantized weight that the calls of one training step share.

    SAM2 runs its mask decoder, memory attention and memory encoder once per frame and click, each time with the
    same weights. The output of the first call stays valid until a backward pass came through it or what it was
    made of was written to. It is held here no longer than that.
    """

    def __init__(self) -> None:
        self._output: Tensor | None = None
        self._made_of: list[tuple[Any, int]] = []

    @staticmethod
    def allowed(weight: Tensor) -> bool:
        """Whether a use of ``weight`` here and now can be shared.

        Not inside torch.compile's graphs, and not where something counts on what every call saves for its backward
        pass, as activation checkpointing does, nor in its recomputation.
        """
        return (
            weight.is_leaf
            and weight.requires_grad
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not recomputing()
            and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
        )

    def find(self, *sources: Any) -> Tensor | None:
        """The output of an earlier call, if it was made of the same tensors, since then unchanged, and flags."""
        if self._output is None or not all(
            then is now and version == _version(now)
            for (then, version), now in zip(self._made_of, sources, strict=True)
        ):
            return None
        return self._output

    def keep(self, output: Tensor, *sources: Any) -> None:
        """Remember an output and the tensors and flags that it was made of."""
        self._output, self._made_of = output, [(source, _version(source)) for source in sources]

    def drop(self) -> None:
        """Forget the output."""
        self._output, self._made_of = None, []

    def dropper(self) -> Callable[[], None]:
        """:meth:`drop` for the output's own graph to call: it holds no reference, which would be a cycle."""
        reference = weakref.ref(self)

        def drop() -> None:
            shared = reference()
            if shared is not None:
                shared.drop()

        return drop


def recomputing() -> bool:
    """Whether this runs inside a backward pass, as activation checkpointing's recomputation does."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _version(source: Any) -> int:
    return source._version if isinstance(source, Tensor) else 0
