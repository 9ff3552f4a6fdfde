"""Views of a clip: frames and masks stay together, every frame alike, by the generator alone."""

from __future__ import annotations

import numpy as np
import torch

from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.training.augmentation import augmented


def test_masks_move_with_the_frames():
    clip = generate_sequence("train", 3, num_frames=3)
    # Pictures that are their masks show whether both went the same way.
    pictures = np.repeat((clip.masks > 0)[..., None] * np.uint8(255), 3, -1)
    views = [augmented(pictures, clip.masks, np.random.default_rng(seed)) for seed in range(4)]
    for frames, masks in views:
        assert frames.shape == pictures.shape
        assert masks.shape == clip.masks.shape
        assert set(np.unique(masks)) <= set(np.unique(clip.masks))
        bright = frames.mean(-1) > frames.mean(-1).max() / 2
        assert ((masks > 0) == bright).mean() > 0.95
    assert not np.array_equal(views[0][1], views[1][1])


def test_a_still_clip_stays_still():
    clip = generate_sequence("train", 3, num_frames=1)
    frames, masks = augmented(np.repeat(clip.frames, 3, 0), np.repeat(clip.masks, 3, 0), np.random.default_rng(1))
    assert (frames == frames[0]).all()
    assert (masks == masks[0]).all()


def test_the_generator_decides_and_torch_keeps_its_own():
    clip = generate_sequence("train", 3, num_frames=2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = augmented(clip.frames, clip.masks, np.random.default_rng(7))
    assert torch.equal(torch.rand(1), expected)
    second = augmented(clip.frames, clip.masks, np.random.default_rng(7))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
