"""How a model in training does on real pictures that it is never trained on, by SAM2's own predictors."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.datasets import open_dataset
from ..evaluation.image import evaluate_image
from ..evaluation.polygons import read_polygons
from ..evaluation.video import evaluate_video
from ..predictors import as_video_predictor
from .validation import quick_score


@dataclass(frozen=True)
class RealScore:
    """Percentages.

    Attributes:
        box: Mean IoU on photographs, each object by its box.
        click: By one click.
        jf: J&F on clips, first mask given.
        procedural: J&F on the procedural "val" split.
        procedural_box: Mean IoU by box there.
    """

    box: float
    click: float
    jf: float
    procedural: float
    procedural_box: float

    @property
    def total(self) -> float:
        """What the best weights are chosen by: real pictures above all."""
        return 0.3 * self.box + 0.2 * self.click + 0.3 * self.jf + 0.1 * self.procedural + 0.1 * self.procedural_box

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "total": self.total}

    def __str__(self) -> str:
        return (
            f"photographs box {self.box:.1f} click {self.click:.1f}, clips J&F {self.jf:.1f}, "
            f"procedural J&F {self.procedural:.1f} box {self.procedural_box:.1f}, total {self.total:.2f}"
        )


@torch.no_grad()
def real_score(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    photographs: int | None = 48,
    per_image: int | None = 4,
    procedural_videos: int = 8,
) -> RealScore:
    """Score a ``SAM2Train``-class model at the size that it has.

    Args:
        model: The model; its mode is restored afterwards.
        folder: Holds ``coco128`` (polygons) and ``pumavos`` (DAVIS's layout).
        photographs: How many of the photographs; None takes all.
        per_image: How many objects of each; None takes all.
        procedural_videos: How many procedural videos.

    Returns:
        The score, the same on every run.

    Raises:
        DataError: The folder lacks something.

    Example:
        >>> score = real_score(as_trainable(model), "realdata/validation", photographs=1, procedural_videos=1)
    """
    root = Path(folder)
    samples = read_polygons(root / "coco128", count=photographs, per_image=per_image)
    predictor = as_video_predictor(model)
    clips = evaluate_video(predictor, open_dataset(root / "pumavos"))
    size: int = predictor.image_size
    quick = quick_score(model, videos=procedural_videos, size=(size, size))
    return RealScore(
        box=evaluate_image(predictor, samples, prompt="box").miou,
        click=evaluate_image(predictor, samples, prompt="click").miou,
        jf=clips.jf,
        procedural=quick.jf,
        procedural_box=quick.box,
    )
