"""Clips of a DAVIS folder as training batches: reproducible, resized, with objects that are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qsam2_ao.data.mixture import Mixture
from qsam2_ao.data.procedural import Sequence, generate_sequence, write_sequence
from qsam2_ao.errors import DataError
from qsam2_ao.training.clips import ClipBatches, ProceduralClips, clip_batches


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    for i in range(2):
        write_sequence(generate_sequence("train", i, size=(60, 80), num_frames=5), tmp_path)
    return tmp_path


def test_batches_are_what_the_training_reads(davis: Path):
    kinds = set()
    for batch in clip_batches(Mixture.open(str(davis)), 64, 8, frames=3, objects=2)(0):
        frames, images = batch.img_batch.shape[:2]
        assert batch.img_batch.shape[2:] == (3, 64, 64)
        assert batch.masks.shape[0] == frames
        assert batch.masks.shape[2:] == (64, 64)
        assert batch.masks[0].flatten(1).any(1).all(), "an object that the first frame does not show"
        kinds.add((frames, images))
    assert kinds == {(3, 1), (1, 3)}, "both clips and images that stand alone"


def test_a_resumed_stream_goes_on_with_the_same_batches(davis: Path):
    mixture = Mixture.open(str(davis))
    whole = [batch.img_batch for batch in clip_batches(mixture, 32, 4, seed=3)(0)]
    rest = [batch.img_batch for batch in clip_batches(mixture, 32, 4, seed=3)(2)]
    assert len(rest) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))
    other = [batch.img_batch for batch in clip_batches(mixture, 32, 4, seed=4)(0)]
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(whole, other, strict=True))


def test_frames_without_masks_are_left_out(davis: Path):
    for path in sorted((davis / "Annotations").rglob("*.png")):
        if path.stem != "00002":
            path.unlink()
        else:
            frame = davis / "JPEGImages" / path.parent.name / f"{path.stem}.jpg"
            Image.new("RGB", (80, 60), (255, 0, 0)).save(frame)
    for batch in clip_batches(Mixture.open(str(davis)), 32, 3)(0):
        assert (batch.img_batch[:, :, 0] > 2).all()
        assert (batch.img_batch[:, :, 1:] < -1.5).all()


def test_void_is_no_object_and_background(davis: Path):
    for path in (davis / "Annotations").rglob("*.png"):
        mask = np.array(Image.open(path)) * 0
        mask[:40], mask[40:50, 30:] = 255, 3
        Image.fromarray(mask).save(path)
    for batch in clip_batches(Mixture.open(str(davis)), 60, 6, objects=5)(0):
        assert {*batch.metadata.unique_objects_identifier[..., 1].unique().tolist()} == {1}
        assert batch.masks[:, :, :40].sum() == 0
        assert batch.masks[:, :, 42:48, 30:].all()


def test_the_kind_of_a_batch_does_not_decide_what_is_drawn():
    numbers: list[float] = []

    class Listening(ProceduralClips):
        def draw(self, frames: int, rng: np.random.Generator) -> Sequence:
            numbers.append(rng.random())
            return super().draw(frames, rng)

    batches = ClipBatches(Listening(32, 1), frames=2)
    kinds = [batches[step].frames.shape[0] for step in range(30)]
    for kind in (1, 2):
        drawn = [number for number, of in zip(numbers, kinds, strict=True) if of == kind]
        assert min(drawn) < 0.4 < max(drawn)


def test_empty_masks_are_an_error(davis: Path):
    for path in (davis / "Annotations").rglob("*.png"):
        Image.fromarray(np.zeros((60, 80), np.uint8)).save(path)
    with pytest.raises(DataError, match="no clip with a visible object"):
        next(clip_batches(Mixture.open(str(davis)), 32, 1)(0))
