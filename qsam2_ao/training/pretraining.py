"""Dense pretraining of the image encoder: what is where, before any prompt is understood.

From scratch, SAM2's own losses reach the encoder through prompts, memory and decoder, and teach it slowly.
Predicting foreground, edges, offsets to the object's centre and an embedding that tells instances apart on
two frames of a clip gives it useful features within a few hundred steps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training.utils.data_utils import BatchedVideoDatapoint

from ..compat.random import forked_generators

_EMBEDDING = 16


class DensePretraining(nn.Module):
    """An image encoder with a throw-away head that predicts dense maps at a quarter of the resolution.

    Args:
        model: A SAM2 model; its image encoder is trained in place.

    Example:
        >>> pretraining = DensePretraining(build_embedded(SAM2Train))
    """

    def __init__(self, model: Any, seed: int = 0) -> None:
        super().__init__()
        self.image_encoder = model.image_encoder
        width = model.hidden_dim
        with forked_generators(seed):
            self.head = nn.Sequential(nn.Conv2d(3 * width, width, 1), nn.GELU(), nn.Conv2d(width, 4 + _EMBEDDING, 1))

    def forward(self, batch: BatchedVideoDatapoint) -> Tensor:
        """Maps ``[videos * frames, 4 + embedding, height / 4, width / 4]`` of a batch of clips."""
        levels = self.image_encoder(batch.flat_img_batch)["backbone_fpn"]
        size = levels[0].shape[-2:]
        levels = [levels[0], *(F.interpolate(level, size=size, mode="nearest") for level in levels[1:])]
        maps: Tensor = self.head(torch.cat(levels, 1))
        return maps


def dense_loss(maps: Tensor, batch: BatchedVideoDatapoint) -> Tensor:
    """The pretraining's loss: a scalar.

    Args:
        maps: What :class:`DensePretraining` returned for the batch.
        batch: Clips with their objects' masks.
    """
    height, width = maps.shape[-2:]
    videos, frames = batch.num_videos, batch.num_frames
    maps = maps.view(videos, frames, -1, height, width)
    masks = F.interpolate(batch.masks.float(), size=(height, width), mode="area")  # [T, O, h, w]
    video_of = batch.obj_to_frame_idx[0, :, 1].long()
    foreground = masks.new_zeros(frames, videos, height, width).index_add_(1, video_of, masks).clamp(max=1)
    fine = batch.masks.float()
    edge = F.max_pool2d(fine, 3, 1, 1) - -F.max_pool2d(-fine, 3, 1, 1)
    edge = F.adaptive_max_pool2d(edge, (height, width))
    edges = masks.new_zeros(frames, videos, height, width).index_add_(1, video_of, edge).clamp(max=1)
    by_frame = maps.transpose(0, 1)  # [T, B, C, h, w]
    total = F.binary_cross_entropy_with_logits(by_frame[:, :, 0], foreground)
    total = total + F.binary_cross_entropy_with_logits(by_frame[:, :, 1], edges)

    # Offsets to the centre, and the mean embedding, of every object on every frame.
    y, x = torch.meshgrid(
        torch.linspace(0, 1, height, device=maps.device),
        torch.linspace(0, 1, width, device=maps.device),
        indexing="ij",
    )
    inside = (masks > 0.5).float()
    area = inside.sum((-2, -1))
    present = (area >= 4).float()
    weight = inside / area.clamp(min=1)[..., None, None]
    own = by_frame[:, video_of]  # [T, O, C, h, w]
    offsets = torch.stack(
        [(weight * x).sum((-2, -1))[..., None, None] - x, (weight * y).sum((-2, -1))[..., None, None] - y], 2
    )
    error = (own[:, :, 2:4] - 4 * offsets).abs().sum(2)
    total = total + ((error * weight).sum((-2, -1)) * present).sum() / present.sum().clamp(min=1)

    embedding = F.normalize(own[:, :, 4:], dim=2)
    prototype = F.normalize((embedding * weight[:, :, None]).sum((-2, -1)), dim=2)  # [T, O, E]
    # Each pixel of the last frame against the prototypes that the objects of its video have on the first.
    scores = torch.einsum("oehw,pe->ophw", embedding[-1], prototype[0]) * 10
    scores = scores.masked_fill((video_of[:, None] != video_of[None])[..., None, None], -1e4)
    log = F.log_softmax(scores, 1).diagonal(dim1=0, dim2=1).permute(2, 0, 1)
    seen = present[0] * present[-1]
    return total - ((log * weight[-1]).sum((-2, -1)) * seen).sum() / seen.sum().clamp(min=1)
