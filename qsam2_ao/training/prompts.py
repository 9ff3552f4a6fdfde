"""Random prompts that an object gets whatever the other objects of its batch are.

SAM2Train draws the points of all objects of a batch from one generator, so that half a batch gets others than the whole
one. Here each object has draws of its own: ranks that share a batch prompt its objects as one process does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training.model import sam2 as sam2_train
from training.model.sam2 import SAM2Train
from training.utils.data_utils import BatchedVideoDatapoint

from ..compat.random import forked_generators
from ..compat.rebind import rebound

Points = tuple[Tensor, Tensor]
#: SAM2Train's methods that draw points, and by which functions of its module.
_DRAWING = {
    "prepare_prompt_inputs": ("get_next_point", "sample_box_points"),
    "_iter_correct_pt_sampling": ("get_next_point",),
}


@contextmanager
def prompts_by_object(model: Any, batch: BatchedVideoDatapoint) -> Iterator[None]:
    """Let a ``SAM2Train`` draw each object's points by themselves inside the block.

    They are a function of the model's generator (``rng``, of which one number is drawn), of the object's video and id,
    and of how often it was drawn for. A class that draws its prompts in another way keeps it.

    Args:
        model: A ``SAM2Train``.
        batch: What it is going to run on.

    Example:
        >>> trainable = as_trainable(model)
        >>> with prompts_by_object(trainable, batch):
        ...     outputs = trainable(batch)
    """
    draws = _Draws(batch, int(model.rng.integers(2**63)))
    changed = [name for name in _DRAWING if getattr(type(model), name) is getattr(SAM2Train, name)]
    for name in changed:
        functions = {function: getattr(draws, function) for function in _DRAWING[name]}
        setattr(model, name, MethodType(rebound(getattr(SAM2Train, name), **functions), model))
    try:
        yield
    finally:
        for name in changed:
            delattr(model, name)


class _Draws:
    """SAM2's functions that draw points for all objects of a batch, called once for each."""

    def __init__(self, batch: BatchedVideoDatapoint, number: int) -> None:
        self._objects = batch.metadata.unique_objects_identifier[0, :, :2].tolist()
        self._number, self._calls = number, 0

    def get_next_point(self, gt_masks: Tensor, pred_masks: Tensor | None, method: str) -> Points:
        """A click on each object, or on what is wrong about it."""
        return self._each(
            gt_masks,
            lambda i: sam2_train.get_next_point(
                gt_masks=gt_masks[i : i + 1],
                pred_masks=None if pred_masks is None else pred_masks[i : i + 1],
                method=method,
            ),
        )

    def sample_box_points(self, masks: Tensor) -> Points:
        """A box around each object, not quite exact."""
        return self._each(masks, lambda i: sam2_train.sample_box_points(masks[i : i + 1]))

    def _each(self, masks: Tensor, draw: Callable[[int], Points]) -> Points:
        drawn = []
        self._calls += 1
        with forked_generators(devices=[masks.device] if masks.is_cuda else []):
            for i, identity in enumerate(self._objects):
                sequence = np.random.SeedSequence((self._number, self._calls, *identity))
                torch.manual_seed(int(sequence.generate_state(1)[0]))
                drawn.append(draw(i))
        points, labels = zip(*drawn, strict=True)
        return torch.cat(points), torch.cat(labels)
