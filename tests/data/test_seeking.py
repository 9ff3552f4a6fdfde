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


def test_a_file_that_knows_only_the_order_of_decoding_is_read_from_its_start(tmp_path: Path) -> None:
    """AVI has no times: FFmpeg counts packets, and frames that lean on later ones are shown in another order."""
    frames = np.zeros((40, 64, 96, 3), np.uint8)
    for t, frame in enumerate(frames):
        frame[20:40, 2 * t : 2 * t + 10] = 250
    with av.open(tmp_path / "clip.avi", "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with av.open(tmp_path / "clip.avi") as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 40
    for start in (7, 16, 39):
        with av.open(tmp_path / "clip.avi") as container:
            assert presentation_times(container, container.streams.video[0]) is None
        with av.open(tmp_path / "clip.avi") as container:
            found = decode_from(container, container.streams.video[0], start)
            rest = [frame.to_ndarray(format="rgb24") for frame in found]
        np.testing.assert_array_equal(rest, decoded[start:])
