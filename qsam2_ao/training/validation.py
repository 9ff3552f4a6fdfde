"""A light score during training, on the "val" split: region and boundary of tracked masks, IoU of prompted
images.

The figures that are published come from SAM2's own predictors in :mod:`qsam2_ao.evaluation`; these here are
cheap, and near enough to see whether a training works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compat.random import forked_generators
from ..data.procedural import generate_sequence
from .batches import RawBatch, split_frames, stack_sequences, to_datapoint


@dataclass(frozen=True)
class Score:
    """Percentages: J (region) and F (boundary) of tracked masks, IoU of images with a box, a click."""

    j: float
    f: float
    box: float
    click: float

    @property
    def jf(self) -> float:
        """The mean of J and F."""
        return (self.j + self.f) / 2

    def __str__(self) -> str:
        return f"J&F {self.jf:.1f} (J {self.j:.1f} F {self.f:.1f}), box {self.box:.1f}, click {self.click:.1f}"


@torch.no_grad()
def quick_score(
    model: nn.Module,
    *,
    videos: int = 16,
    num_frames: int = 12,
    size: tuple[int, int] = (96, 96),
    seed: int = 0,
) -> Score:
    """Score a ``SAM2Train``-class model on the first videos of the "val" split.

    Args:
        model: The model; its mode and settings are restored afterwards.
        videos: How many videos.
        num_frames: Frames per video, of which the first is given.
        size: Height and width in pixels.
        seed: Seed of the data set.

    Returns:
        The score.

    Example:
        >>> score = quick_score(build_embedded(SAM2Train), videos=1)
    """
    device = next(model.parameters()).device
    rng = np.random.default_rng(seed)
    sequences = [generate_sequence("val", i, size=size, num_frames=num_frames, seed=seed) for i in range(videos)]
    clips = stack_sequences(sequences, 5, rng)
    every = max(num_frames // 3, 1)
    images = split_frames(RawBatch(clips.frames[::every], clips.masks[::every], clips.objects), 3, rng)
    j, f = [], []
    for first in range(0, videos, 8):  # bounded memory
        part = clips.objects[(clips.objects[:, 0] >= first) & (clips.objects[:, 0] < first + 8)]
        part = part - np.array([first, 0])
        raw = RawBatch(clips.frames[:, first : first + 8], clips.masks[:, first : first + 8], part)
        masks, truth = _predict(model, raw, device, 0.0, 0.0)
        # As in DAVIS, the first frame is given and the last one is left out.
        j.append(_iou(masks[1:-1], truth[1:-1]).mean(0))
        f.append(_boundary(masks[1:-1], truth[1:-1]).mean(0))
    box = _iou(*_predict(model, images, device, 1.0, 1.0))
    click = _iou(*_predict(model, images, device, 1.0, 0.0))
    return Score(*(100 * float(value.mean()) for value in (torch.cat(j), torch.cat(f), box, click)))


def _predict(model: Any, raw: RawBatch, device: torch.device, points: float, boxes: float) -> tuple[Tensor, Tensor]:
    """Predicted and true masks, bool [frames, objects, height, width], before any correction click."""
    batch = to_datapoint(raw, device)
    names = ("prob_to_use_pt_input_for_eval", "prob_to_use_box_input_for_eval", "rng")
    before, mode = {name: getattr(model, name) for name in names}, model.training
    try:
        model.eval()
        model.prob_to_use_pt_input_for_eval, model.prob_to_use_box_input_for_eval = points, boxes
        model.rng = np.random.default_rng(0)
        with forked_generators(0, [device] if device.type == "cuda" else []):
            outputs = model(batch)
    finally:
        for name, value in before.items():
            setattr(model, name, value)
        model.train(mode)
    masks = torch.stack([output["multistep_pred_masks_high_res"][:, 0] > 0 for output in outputs])
    return masks, batch.masks


def _iou(masks: Tensor, truth: Tensor) -> Tensor:
    union = (masks | truth).sum((-2, -1))
    return torch.where(union == 0, 1.0, (masks & truth).sum((-2, -1)) / union.clamp(min=1))


def _boundary(masks: Tensor, truth: Tensor) -> Tensor:
    """DAVIS's boundary F, with a square instead of a disk as the tolerance."""
    height, width = masks.shape[-2:]
    reach = int(np.ceil(0.008 * np.hypot(height, width)))

    def edges(x: Tensor) -> Tensor:
        padded = F.pad(x.float(), (0, 1, 0, 1), mode="replicate")
        inner = padded[..., :-1, :-1]
        different = (inner != padded[..., :-1, 1:]) | (inner != padded[..., 1:, :-1]) | (inner != padded[..., 1:, 1:])
        return different.float()

    def near(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2 * reach + 1, 1, reach)

    ours, true = edges(masks), edges(truth)
    our_count, true_count = ours.sum((-2, -1)), true.sum((-2, -1))
    precision = torch.where(our_count == 0, (true_count == 0).float(), (ours * near(true)).sum((-2, -1)) / our_count)
    recall = torch.where(true_count == 0, (our_count == 0).float(), (true * near(ours)).sum((-2, -1)) / true_count)
    # An empty boundary is found exactly: with nothing to be wrong about, precision (or recall) is 1 as in
    # DAVIS.
    precision = torch.where((our_count == 0) & (true_count > 0), 1.0, precision)
    recall = torch.where((true_count == 0) & (our_count > 0), 1.0, recall)
    return torch.where(precision + recall > 0, 2 * precision * recall / (precision + recall).clamp(min=1e-9), 0.0)
