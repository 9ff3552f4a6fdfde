"""SA-V's layout, a folder of masks for each object: scored as its evaluator does, and saved as it reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qsam2_ao.data.datasets import open_dataset
from qsam2_ao.evaluation.saving import MaskWriter
from qsam2_ao.evaluation.tracking import first_masks, track_objects
from qsam2_ao.evaluation.video import score_masks, score_video

FRAMES = 13
#: What SA-V's sav_evaluator (facebookresearch/sam2, commit 2b90b9f5) says of the masks below, written as PNG files:
#: ``benchmark([truth], [predicted])`` of sav_dataset/utils/sav_benchmark.py, J and F by object.
_SAV = {0: (84.11214953271028, 100), 1: (84.11214953271028, 100), 2: (39.682539682539684, 50)}


def disc(t: int, y: int, x: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:48, :64]
    return (rows - y - t) ** 2 + (columns - x - 2 * t) ** 2 <= radius**2


def objects() -> tuple[dict[int, dict[int, np.ndarray]], dict[int, dict[int, np.ndarray]]]:
    """Annotations and predictions of three objects: 0 and 1 overlap, 1 is annotated on fewer frames, 2 leaves."""
    truth: dict[int, dict[int, np.ndarray]] = {}
    predicted: dict[int, dict[int, np.ndarray]] = {}
    for t in range(FRAMES):
        for i, (y, x, radius) in enumerate([(15, 14, 8), (20, 18, 8), (30, 30, 6)]):
            predicted.setdefault(t, {})[i] = disc(t, y + 1, x, radius) & (i != 2 or t <= 9)
            if i == 0 or (t % 4 == 0 and (i, t) != (1, 12)):
                truth.setdefault(t, {})[i] = disc(t, y, x, radius) & (i != 2 or t < 8)
    return truth, predicted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frames = tmp_path / "JPEGImages_24fps" / "sav_1"
    frames.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for t in range(FRAMES):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(frames / f"{t:05d}.jpg")
    for t, masks in objects()[0].items():
        for i, mask in masks.items():
            path = tmp_path / "Annotations_6fps" / "sav_1" / f"{i:03d}" / f"{t:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8)).save(path)
    return tmp_path


def test_each_object_is_scored_on_its_own_frames_as_sav_evaluator_does(folder: Path) -> None:
    [video] = open_dataset(folder)
    found = {score.object_id: (score.j, score.f) for score in score_masks(video, objects()[1].items())}
    assert found.keys() == _SAV.keys()
    for i, expected in _SAV.items():
        assert found[i] == pytest.approx(expected, abs=1e-9)


def test_masks_are_written_for_each_object(predictor: Any, folder: Path, tmp_path: Path) -> None:
    [video] = open_dataset(folder)
    starts = first_masks(video)
    assert [sorted(found) for found in starts.values()] == [[0, 1, 2]]
    score_video(predictor, video, found=MaskWriter(tmp_path / "masks", video))
    both = 0
    for t, logits in track_objects(predictor, video.frames, starts):
        read = {}
        for i in range(3):
            picture = Image.open(tmp_path / "masks" / "sav_1" / f"{i:03d}" / f"{t:05d}.png")
            read[i] = np.asarray(picture)
            assert picture.mode == "P"
            assert np.array_equal(read[i], logits[i] > 0)
        both += np.count_nonzero(read[0] & read[1])
    assert both, "objects may overlap"
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 3 * FRAMES
