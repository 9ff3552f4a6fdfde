"""Quantization-aware training of a prepared model, and fine-tuning of a float one.

It is :func:`qsam2_ao.training.loop.train` with SAM2's own losses and prompts, or with a float model's answers.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel
from training.model.sam2 import SAM2Train
from training.utils.data_utils import BatchedVideoDatapoint

from ..errors import QConfigError
from ..models.config import as_class
from ..quantizers import range_parameters
from ..ranks import bare, from_first_rank, rank
from .batches import BatchKind, ProceduralBatches, Stage
from .distillation import Distillation, DistillationWeights
from .loop import TrainResult, train
from .losses import TRAIN_OVERRIDES, SAM2Loss, prompted_forward
from .metrics import MetricsLog
from .partwise import PartwiseDistillation
from .selection import Selection

logger = logging.getLogger(__name__)

#: How often a training is judged by held-out batches, if nothing else is said.
_JUDGEMENTS = 5
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
    lr: float | Rates = 2e-4,
    seed: int = 0,
    distill_from: nn.Module | None = None,
    distill: DistillationWeights | None = None,
    partwise: bool = False,
    batches: Callable[[int], Iterator[BatchedVideoDatapoint]] | None = None,
    held_out: Iterable[BatchedVideoDatapoint] | None = None,
    judge_every: int | None = None,
    workers: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> TrainResult:
    """Train a prepared SAM2 in place.

    Args:
        prepared: What ``prepare_qsam2`` returned, of any SAM2 class; it keeps its class. Its parameters are
            trained. It may be inside of DistributedDataParallel: every rank then calls this alike, with its own part of
            each step's batch, of one kind for all ranks (as many frames of as many videos). A float SAM2 is
            fine-tuned.
        steps: The number of steps.
        lr: Peak learning rate, of all parameters or of kinds of them.
        seed: Seed of data and prompts.
        distill_from: The float model; its answers become further targets.
        distill: Which of them, and their weights; the image features by default.
        partwise: Every part learns apart, from what its float twin reads and answers and nothing else; see
            :class:`~qsam2_ao.training.partwise.PartwiseDistillation`. It takes ``distill_from`` and no ``distill``.
        batches: Other batches, as the loop takes them; the procedural clips in the model's size by default.
        held_out: Batches that are not trained on, which choose between the averaged weights and the start: the model
            ends with those that have the least loss on them, with ``partwise`` each part by itself. None keeps the last
            weights, whatever they are.
        judge_every: Steps between two judgements by the held-out batches; a fifth of the steps by default.
        workers: Processes that generate videos.
        checkpoint: As for :func:`qsam2_ao.training.loop.train`; the best weights so far are kept beside it.
        log_dir: A folder for the metrics; see :class:`~qsam2_ao.training.metrics.MetricsLog`.
        options: Further arguments of :func:`qsam2_ao.training.loop.train`, for example ``progress``.

    Returns:
        The losses, and with held-out batches what they chose.

    Raises:
        CheckpointError: The checkpoint to resume from does not fit.
        NonFiniteError: The training diverged.
        QConfigError: ``partwise`` or ``distill`` without a float model, both of them, or ``judge_every`` without
            ``held_out``.

    Example:
        >>> result = train_qat(prepared, steps=1, batches=lambda first: [batch])
        >>> len(result.losses)
        1
    """
    model = as_trainable(prepared)
    inner: Any = bare(model)
    mode = prepared.training
    device = next(inner.parameters()).device
    if batches is None:
        size = (inner.image_size, inner.image_size)
        source = ProceduralBatches(QAT_STAGES, size=size, seed=2 * seed + 1)
        batches = source.stream(steps * options.get("accumulate", 1), device=device, workers=workers)
    own = SAM2Loss()
    loss: Callable[[Any, BatchedVideoDatapoint], Tensor] = own
    forward: Callable[[nn.Module, BatchedVideoDatapoint], Any] = prompted_forward
    terms: Callable[[], Mapping[str, Tensor]] = lambda: own.terms  # noqa: E731
    if partwise and (distill_from is None or distill is not None):
        raise QConfigError("partwise=True learns from distill_from, the float model, and takes no distill")
    if distill is not None and distill_from is None:
        raise QConfigError("distill weighs what is learned from distill_from, the float model; give that too")
    if judge_every is not None and held_out is None:
        raise QConfigError("judge_every is how often held_out judges; give held-out batches too")
    if distill_from is not None:
        distillation: Distillation | PartwiseDistillation = (
            PartwiseDistillation(distill_from)
            if partwise
            else Distillation(distill_from, distill or DistillationWeights())
        )
        loss, forward, terms = distillation.loss, distillation.forward, lambda: distillation.terms
    options = {"description": "QAT", "warmup": min(steps // 10, 50), **options}
    if "optimizer" not in options:
        options["optimizer"] = qat_optimizer(inner, lr if isinstance(lr, Rates) else Rates(lr))
    options["checkpoint"] = checkpoint
    best = None if checkpoint is None else from_first_rank(partial(_best_of, Path(checkpoint)), "begin a training")
    selection: Selection[BatchedVideoDatapoint, Any] | None = None
    log: MetricsLog | None = None
    try:
        if held_out is not None:
            selection = Selection(
                inner,
                held_out,
                loss,
                forward,
                parts=dict if partwise else None,  # the distances are by part already
                every=judge_every or math.ceil(steps / _JUDGEMENTS),
                steps=steps,
                seed=seed,
                path=best,
            )
            if partwise and (unjudged := set(PartwiseDistillation.parts(inner)) - selection.best.steps.keys()):
                logger.warning(
                    "no held-out batch runs %s: what they learn is not kept; hold out clips too, or freeze them",
                    ", ".join(sorted(unjudged)),
                )
            if options.get("ema") is None:
                # Averages over the last fifth of what is done: short enough to have left the start behind.
                options["ema"] = 1 - 5 / max(steps, 10)
        if log_dir is not None and rank() == 0:
            log = MetricsLog(log_dir, inner, options["optimizer"], steps=steps)
        also, also_resumed = (options.pop(name, None) for name in ("on_step", "on_resume"))

        def on_step(result: TrainResult) -> None:
            logged = dict(terms()) if log is not None else {}
            if selection is not None:
                selection(result)
            if log is not None:
                log(result, logged, None if selection is None else selection.best.judged.get(result.step))
            if also is not None:
                also(result)

        def on_resume(result: TrainResult) -> None:
            if selection is not None:
                selection(result)
            if also_resumed is not None:
                also_resumed(result)

        options |= {"on_step": on_step, "on_resume": on_resume}
        result = train(model, batches, loss, steps=steps, seed=seed, forward=forward, **options)
        if selection is not None:
            inner.load_state_dict(selection.best.state)
            result.selected = selection.best
        return result
    finally:
        if log is not None:
            log.close()
        prepared.train(mode)


def _best_of(checkpoint: Path) -> Path:
    """The file with the best weights; without a checkpoint it is of an earlier training, and goes."""
    best = checkpoint.with_name(checkpoint.name.removesuffix(".pt") + ".best.pt")
    if not checkpoint.exists():
        best.unlink(missing_ok=True)
    return best


@dataclass(frozen=True)
class Rates:
    """Peak learning rates of quantization-aware training.

    Attributes:
        lr: Of weight matrices and convolutions.
        vectors: Of biases and gains, as a multiple of ``lr``.
        ranges: Of the clipping ranges, as a multiple of ``lr``.
    """

    lr: float = 2e-4
    vectors: float = 1.0
    ranges: float = 1.0


def qat_optimizer(model: nn.Module, rates: Rates) -> torch.optim.Optimizer:
    """AdamW without weight decay, with learning rates of their own for vectors and clipping ranges.

    Args:
        model: A prepared model.
        rates: The learning rates.
    """
    ranges = {id(parameter) for parameter in range_parameters(model)}
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            share = rates.ranges if id(parameter) in ranges else rates.vectors if parameter.ndim < 2 else 1.0
            groups.setdefault(rates.lr * share, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": lr} for lr, parameters in groups.items()], betas=(0.9, 0.98), weight_decay=0.0
    )


def as_trainable(model: nn.Module) -> nn.Module:
    """A ``SAM2Train`` that shares every submodule and parameter with the model, prompted as the float
    training is.

    Args:
        model: A SAM2 of any class, float or prepared, or one inside of DistributedDataParallel.

    Returns:
        The model itself where it is a ``SAM2Train`` already (its own settings are kept). Of a model in
        DistributedDataParallel, the ``SAM2Train`` inside of another one.

    Example:
        >>> trainable = as_trainable(model)
    """
    inner = bare(model)
    if isinstance(inner, SAM2Train):
        return model
    trainable: nn.Module = as_class(inner, SAM2Train, **TRAIN_OVERRIDES)
    return data_parallel(trainable, model.process_group) if isinstance(model, DistributedDataParallel) else trainable


def data_parallel(trainable: nn.Module, group: ProcessGroup | None = None) -> DistributedDataParallel:
    """A model whose gradients are the mean over the ranks. Batches of single images use only a part of it.

    Args:
        trainable: On this rank's device.
        group: The ranks; all by default.
    """
    where = next(trainable.parameters()).device
    devices = [where] if where.type == "cuda" else None
    return DistributedDataParallel(trainable, devices, process_group=group, find_unused_parameters=True)
