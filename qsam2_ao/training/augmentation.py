"""Random views of a clip: mirrored, cropped and recoloured, every frame alike."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..compat.random import forked_generators

_SCALE, _RATIO = (0.5, 1.0), (3 / 4, 4 / 3)


def augmented(
    frames: NDArray[np.uint8], masks: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Another view of a clip, of its size.

    Args:
        frames: uint8 ``[frames, height, width, 3]``.
        masks: uint8 ``[frames, height, width]`` of object ids.
        rng: Chooses the view.

    Returns:
        Frames and masks as they came.

    Example:
        >>> frames, masks = augmented(sequence.frames, sequence.masks, np.random.default_rng(0))
        >>> frames.shape == sequence.frames.shape
        True
    """
    view = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomResizedCrop(frames.shape[1:3], scale=_SCALE, ratio=_RATIO, antialias=True),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03),
        ]
    )
    pictures = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2))
    with forked_generators(int(rng.integers(2**63))):
        pictures, ids = view(pictures, tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(masks))))
    return pictures.permute(0, 2, 3, 1).contiguous().numpy(), ids.numpy()
