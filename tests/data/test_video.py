from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qsam2_ao.data.video import frame_rate, read_frames, write_video
from qsam2_ao.errors import DataError, QSAM2Error


def moving(count: int = 6, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    rows, columns = np.mgrid[:height, :width]
    return [
        np.stack([columns * 3 % 256, rows * 4 % 256, np.full_like(rows, 20 * t)], axis=-1).astype(np.uint8)
        for t in range(count)
    ]


def test_a_written_video_reads_back(tmp_path: Path) -> None:
    frames = moving()
    write_video(tmp_path / "clip.mp4", iter(frames), fps=Fraction(30000, 1001))
    read = list(read_frames(tmp_path / "clip.mp4"))
    assert len(read) == 6
    for frame, original in zip(read, frames, strict=True):
        assert frame.dtype == np.uint8
        assert frame.shape == original.shape
        assert np.abs(frame.astype(int) - original).mean() < 8
    assert frame_rate(tmp_path / "clip.mp4") == Fraction(30000, 1001)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_odd_sides_are_padded(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", moving(2, 47, 63))
    assert [frame.shape for frame in read_frames(tmp_path / "odd.mp4")] == [(48, 64, 3)] * 2


def test_stops_early_without_decoding_the_rest(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", moving())
    assert len(list(read_frames(tmp_path / "clip.mp4", max_frames=2))) == 2
    assert len(list(read_frames(tmp_path / "clip.mp4", max_frames=99))) == 6


def test_a_folder_of_frames(tmp_path: Path) -> None:
    for t, frame in enumerate(moving(11)):
        Image.fromarray(frame).save(tmp_path / f"{t}.png")
    read = list(read_frames(tmp_path))
    assert len(read) == 11
    assert all(np.array_equal(a, b) for a, b in zip(read, moving(11), strict=True))
    assert frame_rate(tmp_path, default=10) == 10
    Image.new("RGB", (4, 4)).save(tmp_path / "3.png")
    with pytest.raises(DataError, match="frame 3 is 4 x 4 pixels, the first is 64 x 48"):
        list(read_frames(tmp_path))


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.mp4: no such video"):
        list(read_frames(tmp_path / "none.mp4"))
    with pytest.raises(DataError, match="has no frames"):
        list(read_frames(tmp_path))
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(DataError, match=r"text\.mp4 cannot be decoded"):
        list(read_frames(tmp_path / "text.mp4"))
    with pytest.raises(DataError, match=r"text\.mp4 cannot be read"):
        frame_rate(tmp_path / "text.mp4")
    with av.open(tmp_path / "sound.wav", "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    with pytest.raises(DataError, match=r"sound\.wav has no video stream"):
        list(read_frames(tmp_path / "sound.wav"))


def test_a_cut_off_video_is_an_error(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", moving())
    (tmp_path / "clip.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:800])
    with pytest.raises(DataError, match=r"clip\.mp4"):
        list(read_frames(tmp_path / "clip.mp4"))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "no frames to write"),
        ([np.zeros((4, 4), np.uint8)], "frame 0 is uint8"),
        ([np.zeros((4, 4, 3), np.float32)], "frame 0 is float32"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)], "frame 1 is uint8"),
    ],
)
def test_frames_that_make_no_video(tmp_path: Path, frames: list[NDArray[np.uint8]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_video(tmp_path / "clip.mp4", frames)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_the_old_file(tmp_path: Path) -> None:
    def interrupted() -> Iterator[NDArray[np.uint8]]:
        yield from moving(2)
        raise KeyboardInterrupt

    write_video(tmp_path / "clip.mp4", moving(3))
    before = (tmp_path / "clip.mp4").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "clip.mp4", interrupted())
    assert (tmp_path / "clip.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_bad_rates_and_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fps must be positive"):
        write_video(tmp_path / "clip.mp4", moving(1), fps=0)
    (tmp_path / "file").touch()
    with pytest.raises(QSAM2Error, match="cannot write"):
        write_video(tmp_path / "file" / "clip.mp4", moving(1))
