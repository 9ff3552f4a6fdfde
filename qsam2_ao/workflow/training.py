"""What a training learns from, and the training itself, as ``qsam2 quantize`` and ``qsam2 finetune`` share them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import nn
from training.utils.data_utils import BatchedVideoDatapoint

from ..data.clips import DatasetClips
from ..data.mixture import Mixture
from ..quantizers.statistics import world_size
from ..ranks import rank
from ..recipe import quantized_layers
from ..recipe.prepared import code_range
from ..reporting.notes import note
from ..training.clips import ClipBatches, Clips, Dealt, ProceduralClips
from ..training.freezing import frozen
from ..training.loop import TrainResult
from ..training.qat import Rates, as_trainable, data_parallel, train_qat
from ..training.settings import FLOAT_RATE, RANGE_RATE, TrainingSettings, rate_at
from . import EMBEDDED

HELD_OUT_BATCHES = 8
HELD_OUT_SEED = 2**20
#: Procedural clips of the embedded model in a batch, if nothing else is said; of videos one.
_PROCEDURAL_CLIPS = 4


@dataclass(frozen=True)
class TrainingData:
    """What a training learns from, and what chooses between its weights.

    Attributes:
        batches: As ``train_qat`` takes them.
        held_out: Batches that are not trained on.
    """

    batches: Callable[[int], Iterator[BatchedVideoDatapoint]]
    held_out: list[BatchedVideoDatapoint]


def training_data(
    train: str, held_out: str | None, settings: TrainingSettings, model: SAM2Base, seed: int
) -> TrainingData:
    """Open the data of a training; this rank's part of it.

    Args:
        train: Data sets as :func:`~qsam2_ao.data.mixture.parse_sources` reads them, or "embedded" for procedural clips.
        held_out: Likewise, to judge by; None sets a part of ``train`` aside.
        settings: The training's.
        model: The model, for the size and device of the batches.
        seed: Of the training.

    Raises:
        QConfigError: The batch cannot be dealt to the ranks.
        DataError: A data set or file cannot be used. What is wrong with all of the data is said here.
    """
    size, device = model.image_size, next(model.parameters()).device
    trained: Clips = ProceduralClips(size, 2 * seed + 1)
    judged: Clips = ProceduralClips(size, HELD_OUT_SEED)
    if train != EMBEDDED:
        mixture = Mixture.open(train)
        if held_out is None:
            _say_what_judges(mixture)
            mixture, spared = mixture.hold_out()
            judged = DatasetClips(spared, size, settings.objects)
        trained = DatasetClips(mixture, size, settings.objects)
    if held_out is not None and held_out != EMBEDDED:
        judged = DatasetClips(Mixture.open(held_out, default_split="val"), size, settings.objects)
    clips = _PROCEDURAL_CLIPS if train == EMBEDDED else 1
    dealt = Dealt(settings.clips_at_once(world_size(), clips), settings.accumulate, rank(), world_size())
    frames, objects = settings.frames, settings.objects
    batches = ClipBatches(trained, frames=frames, objects=objects, seed=seed, dealt=dealt, augment=settings.augment)
    judging = ClipBatches(judged, frames=frames, objects=objects, seed=HELD_OUT_SEED, dealt=Dealt(clips))
    return TrainingData(
        batches.stream(settings.steps, device=device, workers=settings.workers),
        list(judging.stream(HELD_OUT_BATCHES, device=device)(0)),
    )


def _say_what_judges(mixture: Mixture) -> None:
    for dataset in mixture.indivisible if rank() == 0 else ():
        note(
            f"{dataset.root} has too few videos ({len(dataset)}) to set some aside: other clips of the same ones judge "
            "the training; name videos to judge by with --val-data"
        )


def room_to_train(model: nn.Module) -> int:
    """Bytes on the disk that the files of a training take together, at most.

    Its checkpoint has the weights, Adam's two moments and the average, and is written anew before the old one goes; the
    best weights are beside it.
    """
    return 9 * sum(tensor.nbytes for tensor in model.state_dict().values())


def rates_of(settings: TrainingSettings, model: nn.Module) -> Rates:
    """The learning rates of a training.

    Args:
        settings: The training's.
        model: What is trained: a float model, or a prepared one. Most of the weights that are not frozen decide.

    Example:
        >>> rates_of(TrainingSettings(1, lr=1e-4), prepared)
        Rates(lr=0.0001, vectors=1.0, ranges=10.0)
    """
    bits = Counter[int]()
    for name, layer in quantized_layers(model):
        bits[code_range(layer.weight_fake_quant, name)[2]] += layer.weight.numel() * layer.weight.requires_grad
    if not bits:
        return Rates(settings.lr or FLOAT_RATE)
    lr = settings.lr or rate_at(bits.most_common(1)[0][0])
    return Rates(lr, ranges=RANGE_RATE if settings.range_lr is None else settings.range_lr / lr)


def train_as(
    settings: TrainingSettings,
    model: nn.Module,
    data: TrainingData,
    *,
    seed: int,
    distill_from: nn.Module | None = None,
    partwise: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    description: str = "train",
) -> TrainResult:
    """Train a model in place, on all ranks, and leave it with the weights that the held-out batches chose.

    Args:
        settings: How.
        model: A float or prepared SAM2.
        data: What to train on and to judge by.
        seed: Of the data and prompts.
        distill_from: As for ``train_qat``.
        partwise: As for ``train_qat``.
        checkpoint: A file to continue from; the best weights so far are kept beside it.
        log_dir: A folder for the metrics.
        description: The progress bar's title.

    Raises:
        CheckpointError: The checkpoint does not fit.
        NonFiniteError: The training diverged.
    """
    trainable = as_trainable(model)
    with frozen(trainable, settings.freeze):
        return train_qat(
            data_parallel(trainable) if world_size() > 1 else trainable,
            steps=settings.steps,
            lr=rates_of(settings, model),
            seed=seed,
            batches=data.batches,
            held_out=data.held_out,
            judge_every=settings.validate_every,
            distill_from=distill_from,
            partwise=partwise,
            checkpoint=checkpoint,
            log_dir=log_dir,
            accumulate=settings.accumulate,
            autocast=torch.bfloat16 if settings.bf16 else None,
            ema=settings.ema,
            description=description,
        )
