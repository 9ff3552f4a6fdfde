"""Train the 256-pixel embedded model on real pictures: ``python -m qsam2_ao.training.real --data DIR --output DIR``.

The model starts as the 96-pixel embedded model grown wider, which does what that one does, and goes on with photographs
and clips composed of them. Pictures start small and grow (``--sizes 128:0 192:8000 256:16000``: the side, and the step
from which on). An interrupted run continues where it stopped when the same command is given again; ``--steps`` and the
steps of sizes still to come may then be others, because the learning rate stays at its peak until the last fifth.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from training.model.sam2 import SAM2Train
from training.utils.data_utils import BatchedVideoDatapoint

from ..data.real.library import Library
from ..files import atomic_write
from ..models.embedded import EMBEDDED_256_CONFIG, build_embedded, load_embedded, save_weights, set_image_size
from ..models.growth import grow
from .command import exit_code
from .loop import TrainResult, train
from .losses import TRAIN_OVERRIDES, SAM2Loss, prompted_forward
from .real_batches import Mix, RealBatches, SizeStage
from .real_validation import RealScore, real_score

#: As for procedural scenes, with more boxes among the prompts: outlines of whole objects are learned from them.
REAL_OVERRIDES = {**TRAIN_OVERRIDES, "prob_to_use_box_input_for_train": 0.75}


@dataclass(frozen=True)
class RealTraining:
    """The settings of a training.

    Attributes:
        data: The folder of training sets; see :class:`~qsam2_ao.data.real.library.Library`.
        output: Folder for the checkpoint, the log and the weights.
        validation: The folder of validation sets, or None.
        backgrounds: A folder of further pictures for backgrounds, or None.
        start: "grow" (from the 96-pixel model), "scratch", or a file of weights.
        sizes: The curriculum.
        steps: The number of steps.
        lr: Peak learning rate.
        ema: Decay of the weights' running average.
        batch: Multiplies the pictures and clips in a step.
        frames: Frames per clip.
        seed: Seed of data, prompts and weights.
        bfloat16: Whether the forward pass runs in bfloat16.
        workers: Processes that compose batches.
        validate_minutes: Minutes between two validations.
        checkpoint_minutes: Minutes between two checkpoints.
        device: Where to train.
    """

    data: Path
    output: Path
    validation: Path | None = None
    backgrounds: Path | None = None
    start: str = "grow"
    sizes: tuple[SizeStage, ...] = (SizeStage(0, 128), SizeStage(8000, 192), SizeStage(16000, 256))
    steps: int = 24000
    lr: float = 6e-4
    ema: float = 0.998
    batch: int = 1
    frames: int = 4
    seed: int = 0
    bfloat16: bool = False
    workers: int = 0
    validate_minutes: float = 10
    checkpoint_minutes: float = 3
    device: str = "cpu"


def starting_model(settings: RealTraining) -> nn.Module:
    """The model as it is before the first step."""
    model = build_embedded(SAM2Train, config=EMBEDDED_256_CONFIG, seed=settings.seed, **REAL_OVERRIDES)
    if settings.start == "grow":
        grow(load_embedded(SAM2Train, apply_postprocessing=False), model, seed=settings.seed)
    elif settings.start != "scratch":
        model = load_embedded(
            SAM2Train,
            config=EMBEDDED_256_CONFIG,
            weights=settings.start,
            apply_postprocessing=False,
            **REAL_OVERRIDES,
        )
    return model


def train_real(settings: RealTraining) -> TrainResult:
    """Train, with ``log.jsonl`` and ``latest.safetensors`` and ``best.safetensors`` (averaged weights) in the output.

    Args:
        settings: All settings.

    Returns:
        The losses and the averaged weights.

    Raises:
        QSAM2Error: A file cannot be written or read, or the training diverged.
        KeyboardInterrupt: Ctrl-C; the checkpoint is saved.

    Example:
        >>> train_real(RealTraining(Path("realdata/train"), Path("run")))  # doctest: +SKIP
    """
    model: Any = starting_model(settings).to(settings.device)
    mix = Mix(
        images=Mix.images * settings.batch,
        clips=Mix.clips * settings.batch,
        frames=settings.frames,
    )
    batches = RealBatches(
        Library.open(settings.data, settings.backgrounds), settings.sizes, mix, seed=2 * settings.seed + 1
    )
    watch = Watch(settings)

    def run(module: nn.Module, batch: BatchedVideoDatapoint) -> list[dict[str, Any]]:
        side = batch.img_batch.shape[-1]
        if side != model.image_size:
            set_image_size(model, side)
        kind = torch.device(settings.device).type
        with _quick_attention(kind), torch.autocast(kind, torch.bfloat16, enabled=settings.bfloat16):
            outputs = prompted_forward(module, batch)
        return _floats(outputs) if settings.bfloat16 else outputs

    def schedule(step: int) -> float:
        warmup, decay = min(300, settings.steps // 10), settings.steps // 5
        return min((step + 1) / max(warmup, 1), 1.0, max(settings.steps - step, 1) / max(decay, 1))

    result = train(
        model,
        batches.stream(settings.steps, device=settings.device, workers=settings.workers),
        SAM2Loss(dice=2.0, focal_alpha=0.5),
        steps=settings.steps,
        lr=settings.lr,
        weight_decay=0.02,
        ema=settings.ema,
        seed=settings.seed,
        forward=run,
        schedule=schedule,
        checkpoint=settings.output / "training.pt",
        checkpoint_every=1_000_000,
        checkpoint_minutes=settings.checkpoint_minutes,
        on_step=lambda result: watch(result, batches.size(result.step - 1)),
        progress=False,
    )
    watch.validate(result, batches.size(max(result.step - 1, 0)))
    return result


def _quick_attention(kind: str) -> AbstractContextManager[None]:
    """On the CPU, matrix products: with the backward of torch's fused attention a step takes 1.25 times as long."""
    return sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else nullcontext()


def _floats(value: Any) -> Any:
    """The same nested outputs with float32 tensors, which the losses need."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _floats(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_floats(item) for item in value]
    return value


class Watch:
    """Writes a line a minute, and validates the averaged weights every few minutes.

    Args:
        settings: The training's.
    """

    def __init__(self, settings: RealTraining) -> None:
        self.settings = settings
        self.logged = self.validated = time.monotonic()
        self.step = 0
        self.best = max((line["total"] for line in self._lines() if "total" in line), default=-1.0)
        self.averaged: Any = None

    def __call__(self, result: TrainResult, size: int) -> None:
        """After every step."""
        now = time.monotonic()
        if self.step == 0:
            self.step = result.step - 1
        if now - self.logged > 60:
            recent = result.losses[self.step :]
            line = {
                "step": result.step,
                "size": size,
                "loss": round(float(np.mean(recent)), 4),
                "seconds_a_step": round((now - self.logged) / max(len(recent), 1), 3),
            }
            self._write(line)
            self.logged, self.step = now, result.step
        if self.settings.validation is not None and now - self.validated > 60 * self.settings.validate_minutes:
            self.validate(result, size)
            self.logged = self.validated = time.monotonic()
            self.step = result.step

    def validate(self, result: TrainResult, size: int) -> RealScore | None:
        """Write the averaged weights, score them, and keep them as the best where they are."""
        assert result.average is not None
        settings = self.settings
        save_weights(result.average, settings.output / "latest.safetensors")
        if settings.validation is None:
            return None
        if self.averaged is None:
            self.averaged = build_embedded(SAM2Train, config=EMBEDDED_256_CONFIG, **REAL_OVERRIDES)
            self.averaged.to(settings.device)
        self.averaged.load_state_dict(result.average)
        set_image_size(self.averaged, size)
        started = time.monotonic()
        score = real_score(self.averaged, settings.validation)
        seconds = round(time.monotonic() - started, 1)
        self._write({"step": result.step, "size": size, **score.to_dict(), "validation_seconds": seconds})
        if score.total > self.best:
            self.best = score.total
            save_weights(result.average, settings.output / "best.safetensors")
        return score

    def _lines(self) -> Iterator[dict[str, Any]]:
        log = self.settings.output / "log.jsonl"
        if log.exists():
            yield from map(json.loads, log.read_text().splitlines())

    def _write(self, line: dict[str, Any]) -> None:
        line = {name: round(value, 3) if isinstance(value, float) else value for name, value in line.items()}
        print(json.dumps(line), flush=True)
        log = self.settings.output / "log.jsonl"
        earlier = log.read_text() if log.exists() else ""
        with atomic_write(log) as temporary:
            temporary.write_text(earlier + json.dumps(line) + "\n")


def _stage(text: str) -> SizeStage:
    try:
        size, start = map(int, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not SIZE:STEP, such as 192:8000") from None
    if size <= 0 or size % 32:
        raise argparse.ArgumentTypeError(f"{size} is not a multiple of 32")
    return SizeStage(start, size)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qsam2_ao.training.real",
        description="Train the 256-pixel embedded SAM2 on real pictures. The same command continues a run.",
    )
    default = RealTraining(Path(), Path())
    parser.add_argument("--data", type=Path, required=True, help="folder with people, facade, ..., cutouts")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoint, log and weights")
    parser.add_argument("--validation", type=Path, help="folder with coco128 and pumavos")
    parser.add_argument("--backgrounds", type=Path, help="folder of further pictures for backgrounds")
    parser.add_argument("--start", default=default.start, help="grow, scratch, or a file of weights")
    parser.add_argument("--sizes", type=_stage, nargs="+", default=list(default.sizes), metavar="SIZE:STEP")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--lr", type=float, default=default.lr, help="peak learning rate")
    parser.add_argument("--ema", type=float, default=default.ema, help="decay of the weights' running average")
    parser.add_argument("--batch", type=int, default=default.batch, help="multiplies pictures and clips in a step")
    parser.add_argument("--frames", type=int, default=default.frames, help="frames per clip")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--bfloat16", action="store_true", help="run the forward pass in bfloat16")
    parser.add_argument("--workers", type=int, default=default.workers, help="processes that compose batches")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU")
    parser.add_argument("--validate-minutes", type=float, default=default.validate_minutes)
    parser.add_argument("--checkpoint-minutes", type=float, default=default.checkpoint_minutes)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = vars(parser.parse_args(arguments))
    threads = options.pop("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    options["sizes"] = tuple(options["sizes"])
    return exit_code(lambda: train_real(RealTraining(**options)))


if __name__ == "__main__":
    sys.exit(main())
