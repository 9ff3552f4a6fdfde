"""Quantization-aware training of a prepared model on the procedural clips, with SAM2's own losses.

It is :func:`qsam2_ao.training.loop.train` with the batches, losses and prompts of the float training; for
data of your own, call the loop yourself or use SAM2's trainer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training.model.sam2 import SAM2Train
from training.utils.data_utils import BatchedVideoDatapoint

from ..models.config import rehouse
from .batches import BatchKind, ProceduralBatches, Stage
from .loop import TrainResult, train
from .losses import TRAIN_OVERRIDES, SAM2Loss, prompted_forward

#: Prompted images and short clips, in the proportion of the float training.
QAT_STAGES = (
    Stage(
        0,
        (
            (BatchKind(videos=4, frames=4, objects=2, images=True), 0.4),
            (BatchKind(videos=4, frames=4, objects=3), 0.6),
        ),
    ),
)


def train_qat(
    prepared: nn.Module,
    *,
    steps: int,
    lr: float = 2e-4,
    seed: int = 0,
    distill_from: nn.Module | None = None,
    distill_weight: float = 1.0,
    batches: Callable[[int], Iterator[BatchedVideoDatapoint]] | None = None,
    workers: int = 0,
    **options: Any,
) -> TrainResult:
    """Train a prepared SAM2 in place.

    Args:
        prepared: What ``prepare_qsam2`` returned, of any SAM2 class; it keeps its class. Its parameters are
            trained.
        steps: The number of steps.
        lr: Peak learning rate.
        seed: Seed of data and prompts.
        distill_from: The float model; its image features become a further target.
        distill_weight: Weight of the distance between the features of the two models, relative to their
            variance.
        batches: Other batches, as the loop takes them; the procedural clips in the model's size by default.
        workers: Processes that generate videos.
        options: Further arguments of :func:`qsam2_ao.training.loop.train`, for example ``checkpoint`` or
            ``progress``.

    Returns:
        The losses.

    Raises:
        CheckpointError: The checkpoint to resume from does not fit.
        NonFiniteError: The training diverged.

    Example:
        >>> train_qat(prepared, steps=100)  # doctest: +SKIP
    """
    model: Any = as_trainable(prepared)
    mode = prepared.training
    device = next(model.parameters()).device
    if batches is None:
        size = (model.image_size, model.image_size)
        source = ProceduralBatches(QAT_STAGES, size=size, seed=2 * seed + 1)
        batches = source.stream(steps, device=device, workers=workers)
    loss: Callable[[Any, BatchedVideoDatapoint], Tensor] = SAM2Loss()
    forward: Callable[[nn.Module, BatchedVideoDatapoint], Any] = prompted_forward
    if distill_from is not None:
        distillation = _Distillation(distill_from, distill_weight)
        loss, forward = distillation.loss, distillation.forward
    options = {"description": "QAT", "weight_decay": 0.0, "warmup": min(steps // 10, 50), **options}
    try:
        return train(model, batches, loss, steps=steps, lr=lr, seed=seed, forward=forward, **options)
    finally:
        prepared.train(mode)


def as_trainable(model: nn.Module) -> nn.Module:
    """A ``SAM2Train`` that shares every submodule and parameter with the model, prompted as the float
    training is.

    Args:
        model: A SAM2 of any class, float or prepared.

    Returns:
        The model itself where it is a ``SAM2Train`` already (its own settings are kept).

    Example:
        >>> trainable = as_trainable(load_embedded())  # doctest: +SKIP
    """
    if isinstance(model, SAM2Train):
        return model
    trainable: nn.Module = rehouse(model, SAM2Train, **TRAIN_OVERRIDES)
    return trainable


class _Distillation:
    """SAM2's loss plus the distance of the image features from those of the float model."""

    def __init__(self, teacher: nn.Module, weight: float) -> None:
        self.teacher: Any = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.weight, self.own = weight, SAM2Loss()

    def forward(self, model: nn.Module, batch: BatchedVideoDatapoint) -> Any:
        features: list[Tensor] = []
        encoder: Any = getattr(model, "module", model).image_encoder
        handle = encoder.register_forward_hook(lambda *call: features.extend(call[-1]["backbone_fpn"]))
        try:
            outputs = prompted_forward(model, batch)
        finally:
            handle.remove()
        with torch.no_grad():
            targets = self.teacher.image_encoder(batch.flat_img_batch)["backbone_fpn"]
        return outputs, features, targets

    def loss(self, forwarded: Any, batch: BatchedVideoDatapoint) -> Tensor:
        outputs, features, targets = forwarded
        distances = [
            F.mse_loss(feature.float(), target) / target.var().clamp(min=1e-8)
            for feature, target in zip(features, targets, strict=True)
        ]
        return self.own(outputs, batch) + self.weight * torch.stack(distances).mean()
