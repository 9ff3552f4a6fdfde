"""Objects through a video, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsam2_ao.data.pictures import read_ids
from qsam2_ao.data.procedural import Sequence
from qsam2_ao.data.video import read_frames, write_video
from qsam2_ao.segmentation import ObjectPrompt, track_file, track_frames


def test_files_hold_the_tracked_ids(
    predictor: Any, sequence: Sequence, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "clip.mp4", sequence.frames)
    frames = list(read_frames(tmp_path / "clip.mp4"))
    prompts = {2: ObjectPrompt(mask=sequence.masks[0] > 0), 3: ObjectPrompt([(20.0, 20.0, 1)])}
    done = track_file(predictor, tmp_path / "clip.mp4", prompts, tmp_path / "out", progress=False)
    assert capsys.readouterr().err == ""
    tracked = dict(track_frames(predictor, frames, prompts))
    assert done.frames == len(tracked) == 3
    for frame, ids in tracked.items():
        np.testing.assert_array_equal(read_ids(done.masks / f"{frame:05d}.png"), ids)
    assert done.visible == {i: sum(bool((ids == i).any()) for ids in tracked.values()) for i in (2, 3)}
    assert len(list(read_frames(done.overlay))) == 3
