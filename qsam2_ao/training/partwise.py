"""Part-wise distillation: every part of SAM2 learns to compute what the float one computes from the same inputs.

An error at the end of a whole model says little about a layer far before it, and through the memory of a clip even
less. Here the image encoder, the mask decoder, memory attention and the memory encoder learn apart and at once, each
from what its float twin reads and answers, as block reconstruction does for a network's blocks (BRECQ, arXiv
2102.05426).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training.utils.data_utils import BatchedVideoDatapoint

from ..ranks import bare
from .distillation import Teacher, mean_distance, mean_over_all, relative_distance

_DECODER = "sam_mask_decoder"
#: What runs by itself, where a model has it. The decoder's convolutions run with the encoder, long before the decoder.
_UNITS = (
    "image_encoder",
    "memory_attention",
    "memory_encoder",
    _DECODER,
    f"{_DECODER}.conv_s0",
    f"{_DECODER}.conv_s1",
    "obj_ptr_proj",
    "obj_ptr_tpos_proj",
)
#: Weight of what is a probability in the decoder's answers, beside distances relative to a variance.
_SHARE = 10.0
#: Of each part in a step, at most.
_CALLS = 4


@dataclass
class _Call:
    """One call of a part of the float model."""

    unit: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answer: list[Tensor]

    @torch.no_grad()
    def wanted(self, teacher: Any) -> list[Tensor]:
        """What the float part answered; of the decoder all masks, whichever it chose."""
        return _tensors(_run(teacher.get_submodule(self.unit), self)) if self.unit == _DECODER else self.answer


class PartwiseDistillation:
    """Forward and loss for :func:`qsam2_ao.training.loop.train`: the float model runs, and the student's parts follow.

    The batch's labels serve as prompts alone.

    Args:
        teacher: The float model, of any SAM2 class; it is copied.

    Example:
        >>> distillation = PartwiseDistillation(model)
        >>> student = as_trainable(prepared)
        >>> result = train(student, lambda first: [batch], distillation.loss, forward=distillation.forward, steps=1)
    """

    def __init__(self, teacher: nn.Module) -> None:
        self._teacher = Teacher(teacher)
        self.terms: dict[str, Tensor] = {}
        """The terms of the last loss, a part each."""

    @staticmethod
    def parts(student: nn.Module, *, frozen: bool = False) -> list[str]:
        """The parts that learn: those with a parameter that is not frozen, or with any at all."""
        modules = dict(student.named_modules())
        units = filter(modules.__contains__, _UNITS)
        return [unit for unit in units if any(p.requires_grad or frozen for p in modules[unit].parameters())]

    def forward(self, model: nn.Module, batch: BatchedVideoDatapoint) -> dict[str, Tensor]:
        """The distance of each part on a batch, 0-dimensional, by the part's name.

        Empty where all parts that run are frozen: on single images with everything frozen but memory attention, say.
        """
        student: Any = bare(model)
        chosen = _some(self._listen(student, batch), student.rng)
        calls = [(call, call.wanted(self._teacher.model)) for call in chosen]
        if not calls:
            return {}
        # Called by its wrapper, where it has one: DistributedDataParallel exchanges the gradients of what it calls.
        with _calling(student, lambda: _distances(student, calls)):
            distances: dict[str, Tensor] = model()
        return distances

    def loss(self, distances: Mapping[str, Tensor], batch: BatchedVideoDatapoint) -> Tensor:
        """The sum of the distances."""
        self.terms = {f"distance_{name}": value.detach() for name, value in distances.items()}
        if not distances:
            return torch.zeros((), device=batch.flat_img_batch.device, requires_grad=True)
        return torch.stack(list(distances.values())).sum()

    def _listen(self, student: Any, batch: BatchedVideoDatapoint) -> list[_Call]:
        calls: list[_Call] = []

        def listener(unit: str) -> Callable[..., None]:
            def hear(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
                # Its tensors now: SAM2 puts others into what the encoder returned.
                calls.append(_Call(unit, args, kwargs, _tensors(out)))

            return hear

        with ExitStack() as stack:
            # A frozen part is judged, and has nothing to learn.
            for unit in self.parts(student, frozen=not torch.is_grad_enabled()):
                module = self._teacher.model.get_submodule(unit)
                stack.callback(module.register_forward_hook(listener(unit), with_kwargs=True).remove)
            self._teacher.answer(student, batch)
        return calls


def _some(calls: list[_Call], rng: np.random.Generator) -> Iterator[_Call]:
    """Some calls of each part: a step has a dozen of the decoder's, which differ by a click.

    SAM2Train's own generator chooses, which is the same on all data-parallel ranks.
    """
    for unit in dict.fromkeys(call.unit for call in calls):
        own = [call for call in calls if call.unit == unit]
        yield from (own[int(i)] for i in rng.permutation(len(own))[:_CALLS])


def _distances(student: Any, calls: list[tuple[_Call, list[Tensor]]]) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    for call, wanted in calls:
        own = _tensors(_run(student.get_submodule(call.unit), call))
        distance = _distance_of_decoder(own, wanted) if call.unit == _DECODER else mean_distance(own, wanted)
        found.setdefault(call.unit, []).append(distance)
    return {unit: torch.stack(distances).mean() for unit, distances in found.items()}


def _distance_of_decoder(own: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Of masks, their estimated IoU, the masks' tokens and the objects' scores.

    Only tokens are measured by their variance: estimates and scores of one picture's objects can be all alike.
    """
    masks, ious, tokens, scores = zip(own, wanted, strict=True)
    squares = F.mse_loss(ious[0].float(), ious[1].float(), reduction="none")
    shares = _divergence(*masks) + mean_over_all(squares) + _divergence(*scores)
    return _SHARE * shares + relative_distance(*tokens)


def _run(module: Any, call: _Call) -> Any:
    if call.unit != _DECODER:
        return module(*call.args, **call.kwargs)
    return module.predict_masks(*call.args, **{k: v for k, v in call.kwargs.items() if k != "multimask_output"})


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in an output that are not the same for every input, positions for example."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [t for name, value in output.items() if "pos" not in name for t in _tensors(value)]
    return [t for value in output or () for t in _tensors(value)]


def _divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence from what is wanted, the mean over pixels or objects."""
    target = wanted.float().sigmoid()
    own = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    least = F.binary_cross_entropy_with_logits(wanted.float(), target, reduction="none")
    return mean_over_all(own - least)


@contextmanager
def _calling(module: nn.Module, function: Callable[[], Any]) -> Iterator[None]:
    """Have a call of the module be one of the function."""
    vars(module)["forward"] = function
    try:
        yield
    finally:
        del vars(module)["forward"]
