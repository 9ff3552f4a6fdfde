"""One fake quantization of a weight for all of its uses in a training step."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor


class WeightCache:
    """The quantized weight that the calls of one training step share.

    SAM2 runs its mask decoder, memory attention and memory encoder once per frame and click, each time with the
    same weights. The output of a call stays valid until a backward pass came through it or what it was made of
    changed. Values are compared, not versions: ``.data``, swapped storages and sharded parameters change weights
    behind autograd's back. The first output of a step is not kept, since most weights are used once in it; what
    happened in earlier steps does not count, since a resumed training would not know it.
    """

    def __init__(self) -> None:
        self._output: Tensor | None = None
        self._made_of: tuple[Tensor, ...] = ()
        self._learning = False
        self._calls = 0

    @staticmethod
    def allowed(weight: Tensor) -> bool:
        """Whether a use of ``weight`` here and now can be shared.

        Not inside torch.compile's graphs, and not where something counts on what every call saves for its backward
        pass, as activation checkpointing does, nor in its recomputation.
        """
        return (
            not torch.compiler.is_compiling()
            and weight.is_leaf
            and weight.requires_grad
            and torch.is_grad_enabled()
            and not recomputing()
            and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
        )

    def wanted(self) -> bool:
        """Count a call; whether the weight was used before in this step, so that it pays to keep its output."""
        self._calls += 1
        return self._calls > 1

    def find(self, weight: Tensor, log_alpha: Tensor, learning: bool) -> Tensor | None:
        """The output of an earlier call, if it was made of what these hold now."""
        if self._output is None or self._learning != learning:
            return None
        same = all(
            then.device == now.device and torch.equal(then, now.detach())
            for then, now in zip(self._made_of, (weight, log_alpha), strict=True)
        )
        return self._output if same else None

    def keep(self, output: Tensor, weight: Tensor, log_alpha: Tensor, learning: bool) -> None:
        """Remember an output and copies of what it was made of."""
        self._output, self._made_of, self._learning = output, (weight, log_alpha.detach().clone()), learning

    def drop(self) -> None:
        """Forget the output."""
        self._output, self._made_of = None, ()

    def end_step(self) -> None:
        """Forget the output, and count the next step's calls."""
        self.drop()
        self._calls = 0

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
