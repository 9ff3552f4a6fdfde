"""A model under training by one method: what the benchmark takes steps with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch.ao.quantization import (
    FusedMovingAvgObsFakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QConfig,
)

from ...models.embedded import load_embedded
from ...models.official import build_official
from ...prepare import prepare_qsam2
from ...training.batches import BatchKind, ProceduralBatches, Stage, to_datapoint
from ...training.losses import SAM2Loss, prompted_forward
from ...training.qat import Rates, as_trainable, qat_optimizer
from ..accuracy.data import calibration_images
from ..accuracy.methods import FLOAT, METHODS

WEIGHT_BITS, ACTIVATION_BITS = 4, 8
FUSED = "FusedMovingAvgObsFakeQuantize"
COMPARED = (FLOAT, "LSC", FUSED, "MinMax-EMA", "LSQ", "LSQ+", "PACT-SAWB", "torchao range learning")
"""Names out of ``METHODS``, and torch.ao's fused observer and fake-quantizer."""


@dataclass(frozen=True)
class TrainingWorkload:
    """A model and the batch that it is trained on.

    Attributes:
        model: "embedded", or the name of an official config, with random weights.
        size: Side of the square input in pixels.
        videos: Clips in a batch.
        frames: Frames of each.
        objects: Objects of each.
    """

    model: str
    size: int
    videos: int
    frames: int
    objects: int

    def __str__(self) -> str:
        return f"{self.model}, {self.videos} x {self.frames} frames of {self.size} px"


EMBEDDED = TrainingWorkload("embedded", 96, 4, 4, 3)
OFFICIAL = TrainingWorkload("sam2.1-t", 512, 1, 2, 2)
VRC_TIMED = TrainingWorkload("sam2.1-t", 1024, 1, 1, 1)
VRC_LARGE = TrainingWorkload("sam2.1-l", 1024, 1, 1, 1)


def build_float(workload: TrainingWorkload, device: str = "cpu") -> SAM2Base:
    """The float model of a workload, with its trained weights or seeded random ones."""
    torch.manual_seed(0)
    if workload.model == "embedded":
        return load_embedded(SAM2VideoPredictor).to(device)
    return build_official(workload.model, image_size=workload.size, device=device)


def qconfig_of(method: str) -> QConfig:
    """A method's QConfig at W4A8, for all layers."""
    if method != FUSED:
        return METHODS[method].qconfig(WEIGHT_BITS, ACTIVATION_BITS)
    half = 2 ** (WEIGHT_BITS - 1)
    return QConfig(
        activation=FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
        ),
        weight=FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver,
            quant_min=-half,
            quant_max=half - 1,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        ),
    )


class Trainee:
    """A model, its optimizer and its batch.

    Args:
        workload: Which model and batch.
        method: One of ``COMPARED``.
        device: Where it is trained.
        compiled: Compile the image encoder, which does most of the work; its shapes are static.

    Example:
        >>> trainee = Trainee(EMBEDDED, "LSC")
        >>> seconds = trainee.step(0)
    """

    def __init__(self, workload: TrainingWorkload, method: str, *, device: str = "cpu", compiled: bool = False) -> None:
        model = build_float(workload, device)
        if method != FLOAT:
            model = prepare_qsam2(
                model,
                qconfig_of(method),
                calibration_data=calibration_images(2, workload.size),
                vrc=None,
                progress=False,
            )
        self.model: Any = as_trainable(model).train()
        if compiled:
            cast(torch.nn.Module, self.model.image_encoder).compile(dynamic=False)
        self.optimizer = qat_optimizer(self.model, Rates(1e-5))
        self.loss = SAM2Loss()
        kind = BatchKind(workload.videos, workload.frames, workload.objects)
        source = ProceduralBatches((Stage(0, ((kind, 1.0),)),), size=(workload.size, workload.size))
        self.batch = to_datapoint(source[0], device)
        self._device = torch.device(device)

    def step(self, seed: int) -> float:
        """One step: forward, backward and update, with prompts of this seed.

        Returns:
            Its seconds.
        """
        torch.manual_seed(seed)
        self.model.rng = np.random.default_rng(seed)
        started = self._now()
        self.optimizer.zero_grad()
        self.loss(prompted_forward(self.model, self.batch), self.batch).backward()
        self.optimizer.step()
        return self._now() - started

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
