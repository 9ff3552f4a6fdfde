from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from qsam2_ao.data.decoding import max_pixels, pixel_limit
from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.errors import DataError
from qsam2_ao.interrupts import INTERRUPTS
from qsam2_ao.training.batches import (
    IMAGE_MEAN,
    IMAGE_STD,
    BatchKind,
    ProceduralBatches,
    RawBatch,
    Stage,
    split_frames,
    stream_of,
    to_datapoint,
)
from qsam2_ao.training.loop import read_checkpoint

CLIPS = BatchKind(videos=2, frames=3, objects=2)
IMAGES = BatchKind(videos=2, frames=3, objects=2, images=True)


def source(*kinds, seed=0, size=(32, 48)):
    return ProceduralBatches((Stage(0, tuple((kind, 1.0) for kind in kinds)),), seed=seed, size=size)


def test_clips_become_sam2s_batches():
    raw = source(CLIPS)[0]
    batch = to_datapoint(raw)
    objects = len(raw.objects)
    assert batch.img_batch.shape == (3, 2, 3, 32, 48)
    assert batch.img_batch.dtype == torch.float32
    assert batch.masks.shape == (3, objects, 32, 48)
    assert batch.masks.dtype == torch.bool
    assert batch.obj_to_frame_idx.shape == (3, objects, 2)
    assert batch.num_frames == 3
    assert batch.num_videos == 2
    # sam2's own index into the flattened images points at the frame that the mask belongs to
    images = batch.flat_img_batch[batch.flat_obj_to_img_idx.long()]
    mean, std = torch.tensor(IMAGE_MEAN)[:, None, None], torch.tensor(IMAGE_STD)[:, None, None]
    for t in range(3):
        for o, (video, identity) in enumerate(raw.objects):
            restored = ((images[t, o] * std + mean) * 255).round().permute(1, 2, 0).numpy()
            assert np.array_equal(restored, raw.frames[t, video])
            assert np.array_equal(batch.masks[t, o].numpy(), raw.masks[t, video] == identity)


def test_images_stand_alone_with_visible_objects():
    raw = source(IMAGES)[0]
    assert raw.frames.shape == (1, 6, 32, 48, 3)
    assert np.bincount(raw.objects[:, 0]).max() <= 2
    assert to_datapoint(raw).masks.flatten(2).any(-1).all()


def test_small_objects_are_taken_where_there_are_no_others():
    masks = np.zeros((2, 1, 256, 256), np.uint8)
    masks[0, 0, 10:24, 10:24] = 1
    masks[1, 0, 40:54, 10:24] = 2
    frames = np.zeros((*masks.shape, 3), np.uint8)
    rng = np.random.default_rng(0)
    small = split_frames(RawBatch(frames, masks, np.zeros((0, 2), np.int64)), 3, rng)
    assert small.objects.tolist() == [[0, 1], [1, 2]]
    masks[1, 0, 100:200, 100:200] = 7
    assert split_frames(RawBatch(frames, masks, small.objects), 3, rng).objects.tolist() == [[1, 7]]
    empty = split_frames(RawBatch(frames, masks * 0, small.objects), 3, rng)
    assert empty.objects.shape == (0, 2)


READS_AHEAD = """
import os, subprocess, sys, time
import torch
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage
from qsam2_ao.training.loop import train


def slow(model, batch):
    time.sleep(0.3)  # the signal comes within a step
    return model(batch.img_batch.mean((-1, -2)).flatten(0, 1))


def stop(result):
    if result.step == 3:
        # By another process: torch overlooks how workers end where their parent ended them.
        later = "import os, sys, time; time.sleep(0.1); os.killpg(int(sys.argv[1]), int(sys.argv[2]))"
        command = [sys.executable, "-c", later, str(os.getpgid(0)), sys.argv[2]]
        subprocess.Popen(command, start_new_session=True)


if __name__ == "__main__":
    batches = ProceduralBatches((Stage(0, ((BatchKind(1, 1, 1), 1.0),)),))
    try:
        train(
            torch.nn.Linear(3, 1), batches.stream(100, workers=1), lambda output, batch: output.square().mean(),
            steps=100, forward=slow, progress=False, checkpoint=sys.argv[1], on_step=stop,
        )
    except KeyboardInterrupt:
        print("stopped")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups")
@pytest.mark.parametrize("number", INTERRUPTS)
def test_a_signal_to_all_processes_saves_the_training(tmp_path: Path, number: int):
    script, checkpoint = tmp_path / "script.py", tmp_path / "checkpoint.pt"
    script.write_text(READS_AHEAD)
    command = [sys.executable, "-W", "ignore", str(script), str(checkpoint), str(int(number))]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "stopped"), done.stderr[-2000:]
    assert read_checkpoint(checkpoint)["step"] >= 4


def test_steps_are_reproducible_and_different():
    first, again, other, seeded = (
        source(CLIPS)[5],
        source(CLIPS)[5],
        source(CLIPS)[6],
        source(CLIPS, seed=1)[5],
    )
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.objects, again.objects)
    assert not np.array_equal(first.frames, other.frames)
    assert not np.array_equal(first.frames, seeded.frames)


def test_stages_follow_their_starts():
    batches = ProceduralBatches((Stage(0, ((IMAGES, 1.0),)), Stage(2, ((CLIPS, 1.0),))), size=(32, 32))
    assert [batches[step].frames.shape[0] for step in range(4)] == [1, 1, 3, 3]


def test_kinds_are_drawn_by_weight():
    one_image, one_clip = BatchKind(1, 1, 2, images=True), BatchKind(1, 2, 2)
    batches = ProceduralBatches((Stage(0, ((one_image, 0.25), (one_clip, 0.75))),), size=(16, 16))
    images = sum(batches[step].frames.shape[0] == 1 for step in range(48))
    assert 4 <= images <= 22


def test_absent_objects_have_empty_masks():
    for index in range(40):
        sequence = generate_sequence("train", index, size=(32, 32), num_frames=20)
        away = [i for i in sequence.object_ids if not (sequence.masks == i).any((1, 2)).all()]
        if away:
            raw = RawBatch(sequence.frames[:, None], sequence.masks[:, None], np.array([(0, away[0])]))
            present = to_datapoint(raw).masks.flatten(2).any(-1)[:, 0]
            assert present[0]
            assert not present.all()
            return
    pytest.fail("no object ever left in 40 sequences")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_stream_starts_anywhere(workers):
    batches = source(CLIPS)
    stream = list(batches.stream(4, workers=workers)(2))
    assert len(stream) == 2
    assert torch.equal(stream[0].img_batch, to_datapoint(batches[2]).img_batch)
    assert torch.equal(stream[1].masks, to_datapoint(batches[3]).masks)


class Unreadable(Dataset[RawBatch]):
    def __getitem__(self, step: int) -> RawBatch:
        raise DataError(f"batch {step} cannot be read; {max_pixels()} pixels are the limit")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_error_and_limit_are_those_of_this_process(workers: int) -> None:
    with pixel_limit(77), pytest.raises(DataError) as caught:
        list(stream_of(Unreadable(), 1, device="cpu", workers=workers)(0))
    assert str(caught.value) == "batch 0 cannot be read; 77 pixels are the limit"


def test_bad_batches_are_refused():
    raw = source(CLIPS)[0]
    with pytest.raises(DataError, match="without objects"):
        to_datapoint(RawBatch(raw.frames, raw.masks, raw.objects[:0]))
    with pytest.raises(DataError, match="step 0"):
        ProceduralBatches((Stage(3, ((CLIPS, 1.0),)),))
