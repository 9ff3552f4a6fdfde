"""Data by name: procedural ones, or a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qsam2_ao.data.procedural import generate_split, write_sequence
from qsam2_ao.workflow.data import calibration_source, procedural_images, sources_fingerprint, videos_with_masks


def test_calibration_sources():
    images = calibration_source("embedded", 3, 96)
    assert [image.shape for image in images] == [(96, 96, 3)] * 3
    np.testing.assert_array_equal(images[0], calibration_source("embedded", 1, 96)[0])
    assert procedural_images(1, 1024)[0].shape == (256, 256, 3)
    assert calibration_source("photographs/", 3, 96) == "photographs/"


def test_videos(tmp_path: Path):
    videos = list(generate_split("val", 3, num_frames=2))
    for video in videos:
        write_sequence(video, tmp_path)
    assert [video.name for video in videos_with_masks("embedded", "val", 2, 2)] == [video.name for video in videos[:2]]
    assert len(videos_with_masks(str(tmp_path), "val", 2, 2)) == 2
    assert len(videos_with_masks(str(tmp_path), "val", None, 2)) == 3


def test_data_sets_that_changed_are_told(tmp_path: Path):
    for name in ("a", "b"):
        write_sequence(next(generate_split("val", 1, num_frames=2)), tmp_path / name)
    names = f"{tmp_path / 'a'}:0.7,{tmp_path / 'b'}@val:0.3"
    before = sources_fingerprint(names)
    assert before == sources_fingerprint(names)
    assert before != sources_fingerprint(names.replace("0.3", "0.4"))
    assert before != sources_fingerprint(names.replace("@val", ""))
    next((tmp_path / "b/Annotations").rglob("*.png")).unlink()
    assert before != sources_fingerprint(names)
    assert sources_fingerprint("embedded") == ["embedded"]
    assert sources_fingerprint(None) is None
