"""Data by name: procedural ones, or a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_layouts import video as layout_video
from data_layouts import write_sav_train

from qsam2_ao.calibration.images import CalibrationImages
from qsam2_ao.data.procedural import generate_split, write_sequence
from qsam2_ao.errors import QSAM2Error
from qsam2_ao.workflow.data import (
    FirstFrames,
    calibration_source,
    data_for,
    procedural_images,
    sources_fingerprint,
    videos_with_masks,
)


def test_calibration_sources():
    images = calibration_source("embedded", 3, 96)
    assert [image.shape for image in images] == [(96, 96, 3)] * 3
    np.testing.assert_array_equal(images[0], calibration_source("embedded", 1, 96)[0])
    assert procedural_images(1, 1024)[0].shape == (256, 256, 3)
    assert calibration_source("photographs/", 3, 96) == "photographs/"


def test_only_the_embedded_models_have_data_by_default(capsys: pytest.CaptureFixture[str]):
    assert data_for("mine.pt", "photographs/", "calibration") == "photographs/"
    assert data_for("embedded", None, "calibration") == "embedded"
    assert not capsys.readouterr().err
    assert data_for("embedded-256", None, "calibration") == "embedded"
    assert "calibration names no data: procedural scenes are taken" in capsys.readouterr().err
    with pytest.raises(QSAM2Error, match="train_data is missing: name a folder of your data"):
        data_for("sam2.1_hiera_tiny.pt", None, "train_data")


def test_calibration_on_video_files(tmp_path: Path):
    sequence = layout_video(frames=5)
    write_sav_train(tmp_path, "sav_000001", sequence)
    source = calibration_source(str(tmp_path), 3, 96)
    assert isinstance(source, FirstFrames)
    assert len(source) == len(source[:5]) == 1
    assert np.abs(source[0].astype(int) - sequence.frames[0]).mean() < 12  # H.264
    assert len(CalibrationImages(source)) == 1


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
