"""Frames of files, from any place, with few of them in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsam2_ao.data import frames as frames_module
from qsam2_ao.data.frames import ClipFrames
from qsam2_ao.data.video import read_frames, write_video
from qsam2_ao.errors import DataError

av = pytest.importorskip("av")


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (50, 70, 3), np.uint8)
    return [np.ascontiguousarray(np.roll(still, 3 * t, axis=1)[:48, :64]) for t in range(count)]


@pytest.fixture(params=["b-frames", "mpeg4", "mpeg-ts", "folder"])
def clip(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """40 frames, with a key frame now and then."""
    if request.param == "folder":
        for t, picture in enumerate(pictures(40)):
            Image.fromarray(picture).save(tmp_path / f"{t:05d}.png")
        return tmp_path
    path = tmp_path / ("clip.ts" if request.param == "mpeg-ts" else "clip.mp4")
    with av.open(path, "w") as container:
        codec = "libx264" if request.param != "mpeg4" else "mpeg4"
        stream = container.add_stream(codec, rate=25, options={"g": "12", "bf": "3"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in pictures(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_any_frame_is_the_one_that_reading_on_gives(clip: Path) -> None:
    whole = list(read_frames(clip))
    frames = ClipFrames(clip)
    assert len(frames) == len(whole) == 40
    for start in (0, 1, 11, 12, 13, 39):
        found = list(read_frames(clip, 3, start=start))
        np.testing.assert_array_equal(found, whole[start : start + 3])
    for index in (39, 38, 5, 0, -1):
        np.testing.assert_array_equal(frames[index], whole[index])
    np.testing.assert_array_equal(list(frames), whole)
    with pytest.raises(IndexError, match="has no frame 40: it has 40"):
        frames[40]


def test_going_back_keeps_few_frames(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "CACHE_BYTES", 7 * 64 * 48 * 3)
    frames, whole = ClipFrames(clip, 30), list(read_frames(clip))
    assert len(frames) == 30
    for index in range(29, -1, -1):
        np.testing.assert_array_equal(frames[index], whole[index])
        assert len(frames._cache) <= 7


def test_a_file_that_breaks_off(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", pictures(3))
    frames = ClipFrames(tmp_path / "clip.mp4")
    frames.__dict__["_length"] = 9  # what a damaged header says
    with pytest.raises(DataError, match="breaks off before frame"):
        frames[8]
    with pytest.raises(DataError, match="breaks off before frame 5"):
        list(read_frames(tmp_path / "clip.mp4", start=5))
    with pytest.raises(DataError, match="no such video file"):
        ClipFrames(tmp_path / "absent.mp4")
