"""Memory and latency over a video, measured by the command."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from qsam2_ao.benchmark.long_video import _measure, draw_clip
from qsam2_ao.cli.main import app
from qsam2_ao.data.video import frame_rate, read_frames
from qsam2_ao.errors import DataError
from qsam2_ao.segmentation import StreamingPredictor


def test_a_clip_of_any_length_moves_there_and_back(tmp_path: Path) -> None:
    draw_clip(tmp_path / "clip.mp4", 45, (64, 48))
    frames = list(read_frames(tmp_path / "clip.mp4"))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 45
    assert frame_rate(tmp_path / "clip.mp4") == 30
    there, back = (np.abs(frames[0].astype(int) - frames[t]).mean() for t in (19, 39))
    assert back < there / 2


def test_the_command_measures_what_tracking_takes(tmp_path: Path) -> None:
    line = ["benchmark", "video", "embedded", "--minutes", "0.01", "--width", "64", "--height", "48", "--json"]
    result = CliRunner().invoke(app, [*line, "-o", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "long_video.json").read_text())
    assert (found["frames"], found["width"], found["height"]) == (18, 64, 48)
    assert [frame for frame, _ in found["memory_mb"]] == [0, 18]
    assert 50 < found["loaded_mb"] <= found["peak_mb"]
    assert 0 < found["latency_ms"]["median"] <= found["latency_ms"]["max"] <= found["seconds"] * 1000 + 100
    assert len(list((tmp_path / "masks").iterdir())) == 18


def test_a_model_that_is_not_there_is_told_before_a_clip_is_drawn(tmp_path: Path) -> None:
    line = ["benchmark", "video", "absent.safetensors", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2
    assert "absent.safetensors" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_first_frames_work_is_no_latency_and_a_picture_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_clip(tmp_path / "clip.mp4", 4, (64, 48))
    start = StreamingPredictor.start

    def slow(self: Any, *arguments: Any, **named: Any) -> Any:
        time.sleep(1.5)
        return start(self, *arguments, **named)

    monkeypatch.setattr(StreamingPredictor, "start", slow)
    found = _measure("embedded", None, tmp_path / "clip.mp4", tmp_path / "masks", "packed", ("masks",), False)
    assert found.seconds >= 1.5
    assert found.latency_ms["max"] < 1500
    draw_clip(tmp_path / "short.mp4", 2, (64, 48))
    with pytest.raises(DataError, match="2 frames"):
        _measure("embedded", None, tmp_path / "short.mp4", tmp_path / "short", "packed", ("masks",), False)
