"""Distillation: the float model's answers to the same prompts as further targets of the training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training.model.sam2 import SAM2Train
from training.utils.data_utils import BatchedVideoDatapoint

from ..models.config import as_class
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


#: What paid in the accuracy benchmark: true masks, and more weight on what the float model computes.
RECOMMENDED = DistillationWeights(features=2.0, masks=10.0, memory=2.0, labels=1.0)


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
        frozen = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.teacher: Any = as_class(frozen, SAM2Train, **TRAIN_OVERRIDES)
        # A choice between masks that SAM2 makes in eval mode alone would have the student learn from another one.
        self.teacher.sam_mask_decoder.dynamic_multimask_via_stability = False
        self.weights, self.own = weights, SAM2Loss()

    def forward(self, model: nn.Module, batch: BatchedVideoDatapoint) -> tuple[_Seen, _Seen]:
        """What student and teacher compute on a batch."""
        student: Any = getattr(model, "module", model)
        if not (self.weights.masks or self.weights.memory):
            seen = _run(model, student, batch)
            with torch.no_grad():
                features = self.teacher.image_encoder(batch.flat_img_batch)["backbone_fpn"]
            return seen, _Seen(features)
        rng, devices = copy.deepcopy(student.rng), {p.device for p in student.parameters() if p.is_cuda}
        # SAM2Train draws prompts from torch's generators and its own: start both models from the same state.
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            self.teacher.rng = rng
            self.teacher.training = True  # chooses the training's prompts; its parts stay in eval mode
            wanted = _run(self.teacher, self.teacher, batch)
        return _run(model, student, batch), wanted

    def loss(self, seen: tuple[_Seen, _Seen], batch: BatchedVideoDatapoint) -> Tensor:
        """SAM2's loss and the weighted terms: a scalar."""
        (own, wanted), weights = seen, self.weights
        total = weights.labels * self.own(own.outputs, batch)
        if weights.features:
            total = total + weights.features * _distance(own.features, wanted.features)
        if weights.memory:
            total = total + weights.memory * _distance(own.memories, wanted.memories)
        if weights.masks:
            terms = [
                F.binary_cross_entropy_with_logits(logits.float(), target.float().sigmoid())
                for logits, target in zip(own.logits, wanted.logits, strict=True)
            ]
            total = total + weights.masks * torch.stack(terms).mean()
        return total


def _run(model: nn.Module, settings: Any, batch: BatchedVideoDatapoint) -> _Seen:
    seen = _Seen()
    with ExitStack() as stack:
        stack.enter_context(_listening(settings.image_encoder, lambda out: seen.features.extend(out["backbone_fpn"])))
        stack.enter_context(_listening(settings.obj_ptr_proj, seen.pointers.append))
        seen.outputs = prompted_forward(model, batch)
    return seen


@contextmanager
def _listening(module: nn.Module, hear: Any) -> Iterator[None]:
    handle = module.register_forward_hook(lambda *call: hear(call[-1]))
    try:
        yield
    finally:
        handle.remove()


def _distance(own: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Mean over tensors of the squared distance relative to the target's variance."""
    terms = [
        F.mse_loss(a.float(), b.float()) / b.float().var().clamp(min=1e-8) for a, b in zip(own, wanted, strict=True)
    ]
    return torch.stack(terms).mean()
