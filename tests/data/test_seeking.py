"""The index of a video by its packets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qsam2_ao.data.seeking import count_packets, decode_from, presentation_times
from qsam2_ao.data.video import write_video

av = pytest.importorskip("av")


def test_times_are_those_of_the_decoded_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8), fps=10)
    with av.open(tmp_path / "clip.mp4") as container:
        times, keys = presentation_times(container, container.streams.video[0])
    with av.open(tmp_path / "clip.mp4") as container:
        decoded = [(frame.pts, frame.key_frame) for frame in container.decode(video=0)]
    assert times == [time for time, _ in decoded]
    assert keys == [time for time, key in decoded if key]
    with av.open(tmp_path / "clip.mp4") as container:
        assert count_packets(container, container.streams.video[0]) == 9
    for start in (0, 4, 8, 9):
        with av.open(tmp_path / "clip.mp4") as container:
            found = [frame.pts for frame in decode_from(container, container.streams.video[0], start)]
        assert found == times[start:]
