"""One experiment of the table: a model, quantized by a method at a setting, trained with a seed, and evaluated."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from math import ceil, floor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from torch import nn
from training.utils.data_utils import BatchedVideoDatapoint

from ...calibration.equalize import equalize_qsam2
from ...convert import convert_qsam2
from ...deploy.packed import PackedIntxTensor
from ...errors import NonFiniteError
from ...evaluation import evaluate_image, evaluate_video
from ...prepare import prepare_qsam2
from ...quantizers import LSCFakeQuantize
from ...recipe import quantized_layers
from ...reporting.size import model_size
from ...sensitivity import assign_bits, budget_bytes, measure_sensitivity
from ...training.batches import to_datapoint
from ...training.qat import Rates, train_qat
from ...training.settings import RATE, rate_at
from .data import PROCEDURAL, BenchmarkData, Split
from .methods import METHODS, Method, Setting, parse_setting
from .models import build_model

HELD_OUT = 8
"""Batches that choose among what a training gives, where a method has them do so."""


@dataclass(frozen=True)
class Budget:
    """What every method gets, and what it is measured on.

    Attributes:
        steps: Steps of training.
        images: Calibration images.
        videos: At most how many test videos.
        frames: Frames of each procedural video.
        search_videos: Validation videos of the search for a learning rate.
        rates: The grid of that search.
    """

    steps: int = 50
    images: int = 32
    videos: int = 128
    frames: int = 8
    search_videos: int = 12
    rates: tuple[Rates, ...] = (Rates(3e-4), Rates(1e-3), Rates(5e-4, 10, 1), Rates(5e-4, 10, 10))


QUICK = Budget(steps=20, images=16, videos=32, frames=8, search_videos=4, rates=Budget().rates[2:3])
"""A first impression in minutes."""

REAL = Budget(videos=12, search_videos=2)
"""On real clips, of which there are fewer and longer ones."""
REAL_QUICK = Budget(steps=10, images=16, videos=2, search_videos=1, rates=QUICK.rates)


@dataclass(frozen=True)
class Scores:
    """Per test video: sums over its objects, in percent, and how many they are.

    Attributes:
        sums: Metric name ("J", "F", "J&F", "mIoU_box", ...) -> one sum per video.
        counts: Metric name -> objects of each video.
    """

    sums: dict[str, list[float]]
    counts: dict[str, list[int]]

    def mean(self, metric: str) -> float:
        """Mean over all objects, in percent."""
        return sum(self.sums[metric]) / sum(self.counts[metric])


def score(
    model: nn.Module,
    split: Split,
    videos: int,
    frames: int,
    *,
    data: BenchmarkData = PROCEDURAL,
    pictures: Collection[str] | None = None,
    progress: bool = False,
) -> Scores:
    """J&F with first-frame masks, and mIoU of single pictures with boxes and clicks, by SAM2's predictors.

    Args:
        model: A model of the SAM2Base family.
        split: "val" or "test".
        videos: At most how many videos.
        frames: Frames of each procedural video.
        data: Where videos and pictures are from.
        pictures: The metrics of single pictures to measure; None for all.
        progress: Show progress bars.
    """
    sequences = data.videos(split, videos, frames)
    tracked = evaluate_video(model, sequences, protocol=data.protocol, progress=progress).scores.by_sequence()
    sums: dict[str, list[float]] = {"J": [], "F": [], "J&F": []}
    counts: dict[str, list[int]] = {name: [] for name in sums}
    for sequence in sequences:
        objects = tracked[sequence.name].objects if sequence.name in tracked else ()
        for name, values in (("J", [o.j for o in objects]), ("F", [o.f for o in objects])):
            sums[name].append(sum(values))
        sums["J&F"].append(sum(o.jf for o in objects))
        for name in counts:
            counts[name].append(len(objects))
    for name, (prompt, samples) in data.pictures(split, videos, frames).items():
        if pictures is not None and name not in pictures:
            continue
        by_video: dict[str, list[float]] = {}
        found = evaluate_image(model, samples, prompt=prompt, progress=progress).ious
        for sample, ious in zip(samples, found, strict=True):
            by_video.setdefault(sample.video or sample.name, []).extend(ious)
        sums[name], counts[name] = [sum(ious) for ious in by_video.values()], [len(ious) for ious in by_video.values()]
    return Scores({name: [round(value, 3) for value in values] for name, values in sums.items()}, counts)


def prepare_method(model: SAM2Base, method: Method, setting: Setting, images: list[NDArray[np.uint8]]) -> SAM2Base:
    """The prepared model of a method at a setting; a copy of the float model for methods without a quantizer."""
    if method.equalize:
        model = equalize_qsam2(model, images, progress=False)
    prepared = prepare_qsam2(
        model,
        _mixed_recipe(model, method, setting, images) if method.mixed else method.recipe(setting),  # type: ignore[arg-type]
        calibration_data=images,
        vrc=method.vrc,
        rounding=method.rounding,
        progress=False,
    )
    for _, layer in quantized_layers(prepared):
        if isinstance(layer.weight_fake_quant, LSCFakeQuantize):
            _change_start(layer, method)
    return prepared


def _mixed_recipe(model: SAM2Base, method: Method, setting: Setting, images: list[NDArray[np.uint8]]) -> dict[str, Any]:
    measured = measure_sensitivity(
        model, images, vrc=method.vrc, rounding=method.rounding, max_images=len(images) // 2, progress=False
    )
    around = {floor(setting.weight_bits), ceil(setting.weight_bits)}
    assignment = assign_bits(measured, sum(budget_bytes(f"w{bits}", model) for bits in around) // len(around))
    return dict(assignment.qconfig(setting.activation_bits))


@torch.no_grad()
def _change_start(layer: Any, method: Method) -> None:
    quantizer = layer.weight_fake_quant
    if not method.output_start:
        quantizer.initialize(layer.weight)
    if method.alpha is not None:
        quantizer.log_alpha.fill_(float(np.log(method.alpha)))
        quantizer.alpha_bar.fill_(method.alpha)
    quantizer.log_alpha.requires_grad_(method.learn_alpha)


def train_method(
    prepared: SAM2Base,
    teacher: nn.Module,
    method: Method,
    seed: int,
    steps: int,
    rates: Rates,
    *,
    data: BenchmarkData = PROCEDURAL,
    **options: Any,
) -> list[float]:
    """Train in place; returns the losses. The batches of a seed are the same for every method."""
    batches = data.training_batches(seed, steps, prepared.image_size)

    def stream(first: int) -> Iterator[BatchedVideoDatapoint]:
        return (to_datapoint(batches[step]) for step in range(first, steps))

    if method.held_out:
        options["held_out"] = map(to_datapoint, data.held_out_batches(HELD_OUT, prepared.image_size))
    result = train_qat(
        prepared,
        steps=steps,
        lr=rates,
        seed=seed,
        batches=stream,
        distill_from=teacher if method.distill or method.partwise else None,
        distill=method.distill,
        partwise=method.partwise,
        progress=False,
        **options,
    )
    return result.losses


def deployed(prepared: SAM2Base) -> tuple[SAM2Base, int]:
    """The converted model with its weights unpacked once (for speed; the same numbers), and its packed bytes."""
    converted = convert_qsam2(prepared)
    size = model_size(converted).actual_bytes
    for module in list(converted.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter.data, PackedIntxTensor):
                setattr(module, name, nn.Parameter(parameter.data.dequantize(), requires_grad=False))
    return converted, size


class Experiments:
    """All experiments of one model, method and setting: calibrated once, trained with each seed.

    Args:
        model_name: One of ``MODELS``.
        method_name: One of ``METHODS``.
        setting_name: See :func:`~qsam2_ao.benchmark.accuracy.methods.parse_setting`.
        budget: What the methods get.
        data: What they are calibrated, trained and measured on.
    """

    def __init__(
        self, model_name: str, method_name: str, setting_name: str, budget: Budget, data: BenchmarkData = PROCEDURAL
    ) -> None:
        self.method, self.setting, self.budget, self.data = (
            METHODS[method_name],
            parse_setting(setting_name),
            budget,
            data,
        )
        self.key = {"model": model_name, "method": method_name, "setting": setting_name}
        self.float_model = build_model(model_name, data.model)
        self._prepared: SAM2Base | None = None

    def start(self) -> SAM2Base:
        """A model to train: calibrated and with fake-quantizers, or a copy of the float one."""
        if self.method.quantizer is None:
            return copy.deepcopy(self.float_model)
        if self._prepared is None:
            images = self.data.calibration_images(self.budget.images, self.float_model.image_size)
            self._prepared = prepare_method(self.float_model, self.method, self.setting, images)
        return copy.deepcopy(self._prepared)

    def _finish(self, model: SAM2Base) -> tuple[SAM2Base, int]:
        if self.method.quantizer is None:
            return model.eval(), model_size(model).bfloat16_bytes
        return deployed(model)

    def _train(self, model: SAM2Base, seed: int, rates: Rates) -> list[float]:
        return train_method(model, self.float_model, self.method, seed, self.budget.steps, rates, data=self.data)

    def _own(self, rates: Rates) -> Rates:
        """What the method makes of an entry of the grid; part by part as the commands do, by the weights' bits."""
        share = rate_at(self.setting.weight_bits) / RATE if self.method.partwise else 1.0
        return replace(rates, lr=rates.lr * share, ranges=rates.ranges * self.method.range_rate)

    def search(self) -> dict[str, Any]:
        """Score every learning rate of the grid on validation videos with seed 0.

        A grid of one entry is not searched.

        Returns:
            "scores": mean of J&F and box mIoU of each entry of the grid (0 where training diverged), "diverged":
            why, and "rates": the best entry.
        """
        if len(self.budget.rates) == 1:
            return {**self.key, "scores": [], "diverged": [], "rates": asdict(self.budget.rates[0])}
        found: list[float] = []
        diverged: list[str] = []
        for rates in self.budget.rates:
            model = self.start()
            try:
                self._train(model, 0, self._own(rates))
            except NonFiniteError as error:
                found.append(0.0)
                diverged.append(f"{rates}: {error}")
                continue
            videos, frames = self.budget.search_videos, self.budget.frames
            scores = score(self._finish(model)[0], "val", videos, frames, data=self.data, pictures=("mIoU_box",))
            found.append(round((scores.mean("J&F") + scores.mean("mIoU_box")) / 2, 3))
        best = asdict(self.budget.rates[int(np.argmax(found))])
        return {**self.key, "scores": found, "diverged": diverged, "rates": best}

    def run(self, seed: int, rates: Rates | None) -> dict[str, Any]:
        """Train with a seed (where the setting is trained) and evaluate on the test videos.

        Args:
            seed: Of data, prompts and their order.
            rates: Learning rates; None without training.

        Returns:
            The experiment: its key, "metrics", "sums" and "counts" per video, "bytes", "losses", "seconds".
        """
        started = time.perf_counter()
        model = self.start()
        losses = []
        used = None if rates is None else self._own(rates)
        if used is not None:
            losses = self._train(model, seed, used)
        trained = time.perf_counter()
        finished, size = self._finish(model)
        scores = score(finished, "test", self.budget.videos, self.budget.frames, data=self.data)
        return {
            **self.key,
            "seed": seed,
            "rates": None if used is None else asdict(used),
            "metrics": {name: scores.mean(name) for name in scores.sums},
            **asdict(scores),
            "bytes": size,
            "losses": [round(loss, 4) for loss in losses],
            "seconds": {"train": round(trained - started, 1), "evaluate": round(time.perf_counter() - trained, 1)},
        }
