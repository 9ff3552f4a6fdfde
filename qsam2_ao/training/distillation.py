"""Distillation: the float model's answers to the same prompts as further targets of the training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training.model.sam2 import SAM2Train
from training.utils.data_utils import BatchedVideoDatapoint

from ..compat.random import forked_generators
from ..models.config import as_class
from ..quantizers.statistics import world_size
from ..ranks import bare, mean_over_ranks
from .losses import TRAIN_OVERRIDES, SAM2Loss, prompted_forward


@dataclass(frozen=True)
class DistillationWeights:
    """Weights of the terms beside SAM2's own loss; 0 leaves a term out.

    Attributes:
        features: Distance of the image features, relative to their variance.
        masks: Cross-entropy of the mask logits with the float model's probabilities, before any correction click.
        memory: Distance of memory features and object pointers, relative to their variance.
        labels: SAM2's own loss.
    """

    features: float = 1.0
    masks: float = 0.0
    memory: float = 0.0
    labels: float = 1.0


#: What the float model computes, without labels. At a weight of 2 the features' distance was a hundredth of the loss
#: (embedded-256, W2A8) and did not fall in training.
RECOMMENDED = DistillationWeights(features=100.0, masks=10.0, memory=10.0, labels=0.0)


#: How SAM2Train is prompted in training: the teacher as the student, whatever that was built with.
_PROMPTING = (
    "prob_to_use_pt_input_for_train",
    "prob_to_use_box_input_for_train",
    "prob_to_sample_from_gt_for_train",
    "num_frames_to_correct_for_train",
    "rand_frames_to_correct_for_train",
    "num_init_cond_frames_for_train",
    "rand_init_cond_frames_for_train",
    "add_all_frames_to_correct_as_cond",
    "num_correction_pt_per_frame",
)


@dataclass
class _Seen:
    """What a model computed on a batch."""

    features: list[Tensor] = field(default_factory=list)
    pointers: list[Tensor] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def memories(self) -> list[Tensor]:
        stored = [frame.get("maskmem_features") for frame in self.outputs]
        return [memory for memory in stored if memory is not None] + self.pointers

    @property
    def logits(self) -> list[Tensor]:
        return [frame["multistep_pred_multimasks"][0] for frame in self.outputs]


class Teacher:
    """The float model, which answers to the prompts that a student will get.

    Args:
        model: Of any SAM2 class; it is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
        self.model: Any = as_class(frozen, SAM2Train, **TRAIN_OVERRIDES)
        # A choice between masks that SAM2 makes in eval mode alone would have the student learn from another one.
        self.model.sam_mask_decoder.dynamic_multimask_via_stability = False

    @torch.no_grad()
    def answer(self, student: Any, batch: BatchedVideoDatapoint) -> _Seen:
        """What the float model computes on a batch, prompted as the student, a ``SAM2Train``, is about to be."""
        devices = {p.device for p in student.parameters() if p.is_cuda}
        # SAM2Train draws prompts from torch's generators and its own: start both models from the same state.
        with forked_generators(devices=devices):
            self.model.rng = copy.deepcopy(student.rng)
            for name in _PROMPTING:
                setattr(self.model, name, getattr(student, name))
            self.model.training = True  # chooses the training's prompts; its parts stay in eval mode
            return _run(self.model, self.model, batch)


class Distillation:
    """Forward and loss for :func:`qsam2_ao.training.loop.train` with a float model as the teacher.

    Both models get the same first prompts; correction clicks follow each one's own errors, as in SAM2's training.

    Args:
        teacher: The float model, of any SAM2 class; it is copied.
        weights: Of the terms.

    Example:
        >>> distillation = Distillation(model, DistillationWeights(masks=1.0))
        >>> student = as_trainable(prepared)
        >>> result = train(student, lambda first: [batch], distillation.loss, forward=distillation.forward, steps=1)
    """

    def __init__(self, teacher: nn.Module, weights: DistillationWeights) -> None:
        self._teacher = Teacher(teacher)
        self.weights, self.own = weights, SAM2Loss()
        self.terms: dict[str, Tensor] = {}
        """The terms of the last loss, before they are weighted: those of SAM2's own, and of the distillation."""

    def forward(self, model: nn.Module, batch: BatchedVideoDatapoint) -> tuple[_Seen, _Seen]:
        """What student and teacher compute on a batch."""
        student: Any = bare(model)
        if not (self.weights.masks or self.weights.memory):
            seen = _run(model, student, batch)
            with torch.no_grad():
                features = self._teacher.model.image_encoder(batch.flat_img_batch)["backbone_fpn"]
            return seen, _Seen(features)
        wanted = self._teacher.answer(student, batch)
        return _run(model, student, batch), wanted

    def loss(self, seen: tuple[_Seen, _Seen], batch: BatchedVideoDatapoint) -> Tensor:
        """SAM2's loss and the weighted terms: a scalar."""
        (own, wanted), weights = seen, self.weights
        total = weights.labels * self.own(own.outputs, batch)
        terms: dict[str, Tensor] = {}
        if weights.features:
            terms["features"] = mean_distance(own.features, wanted.features)
        if weights.memory:
            terms["memory"] = mean_distance(own.memories, wanted.memories)
        if weights.masks:
            entropies = [
                mean_over_all(
                    F.binary_cross_entropy_with_logits(logits.float(), target.float().sigmoid(), reduction="none")
                )
                for logits, target in zip(own.logits, wanted.logits, strict=True)
            ]
            terms["masks"] = torch.stack(entropies).mean()
        for name, term in terms.items():
            total = total + getattr(weights, name) * term
        self.terms = {**self.own.terms, **{f"distilled_{name}": term.detach() for name, term in terms.items()}}
        return total


def _run(model: nn.Module, settings: Any, batch: BatchedVideoDatapoint) -> _Seen:
    features: list[Tensor] = []
    pointers: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(_listening(settings.image_encoder, lambda out: features.extend(out["backbone_fpn"])))
        stack.enter_context(_listening(settings.obj_ptr_proj, pointers.append))
        # As results of the model: DistributedDataParallel waits for the gradients of what its results depend on.
        stack.enter_context(_listening(settings, lambda out: (out, features, pointers)))
        result: Any = prompted_forward(model, batch)
    outputs, features, pointers = result
    return _Seen(features, pointers, outputs)


@contextmanager
def _listening(module: nn.Module, hear: Callable[[Any], Any]) -> Iterator[None]:
    """Hand a module's results to a function; what it returns, if anything, takes their place."""
    handle = module.register_forward_hook(lambda *call: hear(call[-1]))
    try:
        yield
    finally:
        handle.remove()


def mean_distance(own: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """The mean of the :func:`relative_distance` of several tensors."""
    return torch.stack([relative_distance(a, b) for a, b in zip(own, wanted, strict=True)]).mean()


def relative_distance(own: Tensor, wanted: Tensor) -> Tensor:
    """The squared distance relative to the target's variance."""
    squares = F.mse_loss(own.float(), wanted.float(), reduction="none")
    return mean_over_all(squares) / _variance(wanted.float()).clamp(min=1e-8)


def mean_over_all(values: Tensor) -> Tensor:
    """The mean, such that the mean over data-parallel ranks is that of all their values, however many each has."""
    if world_size() == 1:
        return values.mean()
    return values.sum() / mean_over_ranks(torch.tensor(float(values.numel()), device=values.device))


def _variance(values: Tensor) -> Tensor:
    """The variance, over all data-parallel ranks."""
    if world_size() == 1:
        return values.var(correction=0)
    exact = values.double()
    count = torch.tensor(float(values.numel()), device=values.device, dtype=torch.float64)
    count, total, squares = mean_over_ranks(torch.stack([count, exact.sum(), exact.square().sum()]))
    return ((squares - total.square() / count) / count).float()
