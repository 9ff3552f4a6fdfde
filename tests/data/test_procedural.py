from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qsam2_ao.data.procedural import (
    SPLITS,
    Prompt,
    davis_palette,
    generate_sequence,
    generate_split,
    write_sequence,
)
from qsam2_ao.data.procedural_render import FAMILIES, outline, sample, texture
from qsam2_ao.errors import DataError


def test_same_arguments_give_the_same_bits():
    first, second = (generate_sequence("train", 3, num_frames=4) for _ in range(2))
    assert np.array_equal(first.frames, second.frames)
    assert np.array_equal(first.masks, second.masks)
    assert first.object_ids == second.object_ids
    assert first.name == "train-00003"


def test_splits_indices_and_seeds_are_disjoint():
    digests = set()
    for split in SPLITS:
        for index in range(6):
            for seed in range(2):
                sequence = generate_sequence(split, index, num_frames=1, seed=seed)
                digests.add(hashlib.sha256(sequence.masks.tobytes() + sequence.frames.tobytes()).hexdigest())
    assert len(digests) == 3 * 6 * 2


def test_a_longer_sequence_begins_with_the_shorter_one():
    short, long = (generate_sequence("val", 1, num_frames=n) for n in (3, 6))
    assert np.array_equal(short.frames, long.frames[:3])
    assert np.array_equal(short.masks, long.masks[:3])


def test_stride_skips_frames():
    every, third = (generate_sequence("val", 2, num_frames=n, stride=stride) for n, stride in ((7, 1), (3, 3)))
    assert np.array_equal(third.frames, every.frames[::3])


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(16, 70),
    width=st.integers(16, 70),
    num_frames=st.integers(1, 3),
    index=st.integers(0, 10**9),
    split=st.sampled_from(SPLITS),
)
def test_any_size_and_length(height, width, num_frames, index, split):
    sequence = generate_sequence(split, index, size=(height, width), num_frames=num_frames)
    assert sequence.frames.shape == (num_frames, height, width, 3)
    assert sequence.frames.dtype == np.uint8
    assert sequence.masks.shape == (num_frames, height, width)
    assert len(sequence) == num_frames
    assert 2 <= len(sequence.object_ids) <= 5
    # Every object asked about is there on the first frame, and no mask has an id that is not asked about.
    assert set(np.unique(sequence.masks[0])) - {0} == set(sequence.object_ids)
    assert set(np.unique(sequence.masks)) - {0} <= set(sequence.object_ids)


def test_masks_agree_with_the_frames():
    """Colours change more across a mask's outline than elsewhere: the objects are where the masks say."""
    across, within = [], []
    for sequence in generate_split("val", 8, num_frames=2):
        image = sequence.frames[0].astype(float)
        step = np.abs(np.diff(image, axis=1)).sum(-1)
        # One pixel of tolerance for antialiasing.
        border = np.diff(sequence.masks[0].astype(int), axis=1) != 0
        across.append(step[border].mean())
        within.append(step[~border].mean())
    assert np.mean(across) > 2.5 * np.mean(within)


def test_objects_leave_return_and_hide_one_another():
    left = returned = 0
    for sequence in generate_split("train", 20, size=(32, 32), num_frames=26):
        for identity in sequence.object_ids:
            seen = (sequence.masks == identity).any((1, 2))
            assert seen[0]
            gone = np.nonzero(~seen)[0]
            left += len(gone) > 0
            returned += len(gone) > 0 and bool(seen[gone[0] :].any())
    assert left >= 3
    assert returned >= 2


def test_objects_move_and_change():
    moved = []
    for sequence in generate_split("val", 6, num_frames=9):
        for identity in sequence.object_ids:
            first, last = sequence.masks[0] == identity, sequence.masks[-1] == identity
            moved.append((first & last).sum() / (first | last).sum())
    assert np.mean(moved) < 0.8


def test_prompts_describe_the_first_frame():
    sequence = generate_sequence("test", 0, num_frames=1)
    assert set(sequence.prompts) == set(sequence.object_ids)
    for identity, prompt in sequence.prompts.items():
        mask = sequence.masks[0] == identity
        assert np.array_equal(prompt.mask, mask)
        x0, y0, x1, y1 = prompt.box.astype(int)
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0].any()
        assert mask[y1 - 1].any()
        assert mask[:, x0].any()
        assert mask[:, x1 - 1].any()
        for (x, y), label in zip(prompt.points.astype(int), prompt.labels, strict=True):
            assert mask[y, x] == bool(label)


def test_the_first_click_is_the_innermost_pixel():
    mask = np.zeros((20, 30), bool)
    mask[2:13, 4:15] = True  # a square, and a thin tail that moves the centroid
    mask[7, 15:30] = True
    assert Prompt.from_mask(mask).points[0].tolist() == [9, 7]


def test_prompt_of_a_full_frame_has_its_negative_click_outside():
    prompt = Prompt.from_mask(np.ones((4, 4), bool))
    assert prompt.points[2].tolist() == [-1, -1]


def test_impossible_prompts_are_refused():
    sequence = generate_sequence("val", 0, num_frames=1)
    with pytest.raises(DataError, match="no object 99"):
        sequence.prompt(99)
    with pytest.raises(DataError, match="empty mask"):
        Prompt.from_mask(np.zeros((4, 4), bool))
    with pytest.raises(DataError, match="not visible on frame 0"):
        type(sequence)(sequence.frames, sequence.masks, (*sequence.object_ids, 77), "x").prompt(77)


@pytest.mark.parametrize(
    "arguments",
    [
        {"split": "all"},
        {"index": -1},
        {"num_frames": 0},
        {"size": (8, 96)},
        {"seed": -1},
        {"stride": 0},
    ],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(DataError, match=next(iter(arguments))):
        generate_sequence(**{"split": "val", "index": 0, **arguments})


def test_written_as_davis_and_read_by_sam2(tmp_path):
    from sam2.utils.misc import load_video_frames

    sequence = generate_sequence("test", 4, size=(40, 56), num_frames=3)
    write_sequence(sequence, tmp_path)
    annotations = tmp_path / "Annotations" / sequence.name
    for t in range(3):
        annotation = Image.open(annotations / f"{t:05d}.png")
        assert annotation.mode == "P"  # sam2's loaders take the palette's indices as object ids
        assert np.array_equal(np.array(annotation), sequence.masks[t])
        assert annotation.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]

    folder = str(tmp_path / "JPEGImages" / sequence.name)
    images, height, width = load_video_frames(
        folder,
        image_size=96,
        offload_video_to_cpu=True,
        img_mean=(0, 0, 0),
        img_std=(1, 1, 1),
        compute_device="cpu",
    )
    assert images.shape == (3, 3, 96, 96)
    assert (height, width) == (40, 56)
    assert images.mean(dim=(0, 2, 3)).numpy() * 255 == pytest.approx(sequence.frames.mean((0, 1, 2)), abs=2)


def test_palette_is_that_of_davis():
    palette = np.frombuffer(davis_palette(), np.uint8).reshape(256, 3)
    assert palette[5].tolist() == [128, 0, 128]
    assert palette[255].tolist() == [224, 224, 192]


@pytest.mark.parametrize("family", FAMILIES)
def test_outlines_have_unit_area(family):
    radius = outline(family, np.random.default_rng(0))
    assert radius.shape == (256,)
    assert (radius > 0.1).all()
    assert np.mean(radius**2) == pytest.approx(1, abs=1e-5)


def test_textures_are_periodic_and_sampled_between_texels():
    tile = texture(16, np.random.default_rng(0), 1.5)[..., None]
    assert tile.min() >= 0
    assert tile.max() <= 1
    u = np.array([0.0, 1.0, -1.0, 1 / 32], np.float32)
    values = sample(tile, u, np.zeros(4, np.float32))[:, 0]
    assert values[0] == values[1] == values[2] == tile[0, 0, 0]
    assert values[3] == pytest.approx((tile[0, 0, 0] + tile[0, 1, 0]) / 2, abs=1e-6)
