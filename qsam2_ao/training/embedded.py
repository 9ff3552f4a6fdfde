"""Train the embedded model from scratch: ``python -m qsam2_ao.training.embedded --output DIR``.

First the image encoder alone (dense pretraining), then single images with boxes and clicks, then clips mixed with
images. The defaults are those of the weights that come with the package; they take about an hour on one CPU core. An
interrupted run continues where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from training.model.sam2 import SAM2Train

from ..files import atomic_write
from ..models.embedded import build_embedded, save_weights
from .batches import BatchKind, ProceduralBatches, Stage
from .command import exit_code
from .loop import TrainResult, train
from .losses import TRAIN_OVERRIDES, SAM2Loss, prompted_forward
from .pretraining import DensePretraining, dense_loss
from .validation import Score, quick_score

PAIRS = BatchKind(videos=16, frames=2, objects=4)
IMAGES = BatchKind(videos=8, frames=4, objects=2, images=True)
CLIPS = BatchKind(videos=8, frames=4, objects=3)
LONG_CLIPS = BatchKind(videos=6, frames=8, objects=3)


def stages(steps: int) -> tuple[Stage, ...]:
    """12 % of the steps with images, then clips of 4 frames mixed with images, 8 frames in the last 20 %."""
    return (
        Stage(0, ((IMAGES, 1.0),)),
        Stage(int(0.12 * steps), ((IMAGES, 0.4), (CLIPS, 0.6))),
        Stage(int(0.80 * steps), ((IMAGES, 0.4), (LONG_CLIPS, 0.6))),
    )


def train_embedded(
    output: Path,
    *,
    seed: int = 0,
    pretraining_steps: int = 400,
    steps: int = 5000,
    lr: float = 1e-3,
    ema: float = 0.999,
    workers: int = 1,
    evaluate_every: int = 500,
    device: str = "cpu",
    progress: bool = True,
) -> Score:
    """Train the embedded model and write ``qsam2_embedded.safetensors`` (the averaged weights) to a folder.

    Args:
        output: The folder, also of the checkpoints and of ``scores.jsonl``.
        seed: Seed of weights, data and prompts.
        pretraining_steps: Steps of the dense pretraining.
        steps: Steps with SAM2's losses.
        lr: Peak learning rate.
        ema: Decay of the weights' running average.
        workers: Processes that generate videos.
        evaluate_every: Steps between two scores on the "val" split.
        device: Where to train.
        progress: Whether to show progress bars.

    Returns:
        The last score of the averaged weights.

    Raises:
        QSAM2Error: A file cannot be written or read, or the training diverged.
        KeyboardInterrupt: Ctrl-C; the checkpoint is saved.

    Example:
        >>> train_embedded(Path("run"), steps=5000)  # doctest: +SKIP
    """
    model: Any = build_embedded(SAM2Train, seed=seed, **TRAIN_OVERRIDES).to(device)
    pairs = ProceduralBatches((Stage(0, ((PAIRS, 1.0),)),), seed=2 * seed)
    train(
        DensePretraining(model, seed),
        pairs.stream(pretraining_steps, device=device, workers=workers),
        dense_loss,
        steps=pretraining_steps,
        lr=lr,
        warmup=pretraining_steps // 10,
        seed=seed,
        checkpoint=output / "pretraining.pt",
        progress=progress,
        description="pretraining",
    )
    averaged: Any = build_embedded(SAM2Train, seed=seed, **TRAIN_OVERRIDES).to(device)
    weights = output / "qsam2_embedded.safetensors"

    def export(result: TrainResult) -> Score:
        assert result.average is not None
        averaged.load_state_dict(result.average)
        score = quick_score(averaged)
        save_weights(result.average, weights)
        line = {"step": result.step, "jf": score.jf, **vars(score)}
        scores = output / "scores.jsonl"
        earlier = scores.read_text() if scores.exists() else ""
        with atomic_write(scores) as temporary:
            temporary.write_text(earlier + json.dumps(line) + "\n")
        print(f"step {result.step}: {score}", file=sys.stderr)
        return score

    def on_step(result: TrainResult) -> None:
        if result.step % evaluate_every == 0 and result.step < steps:
            export(result)

    batches = ProceduralBatches(stages(steps), seed=2 * seed + 1)
    result = train(
        model,
        batches.stream(steps, device=device, workers=workers),
        SAM2Loss(),
        steps=steps,
        lr=lr,
        weight_decay=0.02,
        warmup=min(200, steps // 10),
        ema=ema,
        seed=seed,
        forward=prompted_forward,
        checkpoint=output / "training.pt",
        on_step=on_step,
        progress=progress,
        description="training",
    )
    return export(result)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m qsam2_ao.training.embedded",
        description="Train the embedded SAM2 from scratch. The same command continues an interrupted run.",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints, scores and weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pretraining-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the weights' running average")
    parser.add_argument("--workers", type=int, default=1, help="processes that generate videos")
    parser.add_argument("--evaluate-every", type=int, default=500, help="steps between two scores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = vars(parser.parse_args(arguments))
    return exit_code(lambda: train_embedded(**options))


if __name__ == "__main__":
    sys.exit(main())
