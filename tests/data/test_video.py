from __future__ import annotations

import gc
import re
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qsam2_ao.data.frames import ClipFrames
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


def test_frames_that_have_passed_do_not_wait_for_the_garbage_collector(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", moving(30))
    gc.collect()
    gc.disable()
    try:
        assert sum(1 for _ in read_frames(tmp_path / "clip.mp4")) == 30
        assert not [item for item in gc.get_objects(generation=0) if isinstance(item, av.VideoFrame)]
    finally:
        gc.enable()


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


QUARTERS = {  # what a phone writes for how it was held: the display matrix, without its last column
    0: (1, 0, 0, 1),
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}


@pytest.mark.parametrize("angle", QUARTERS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_phones_clip_is_turned_and_mirrored_as_players_do(tmp_path: Path, angle: int, mirrored: bool) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = 255  # the upper left quarter
    write_video(tmp_path / "clip.mp4", [frame] * 2)
    a, b, c, d = (65536 * value for value in QUARTERS[angle])
    if mirrored:
        a, c = -a, -c
    data = bytearray((tmp_path / "clip.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack(">9i", data[matrix : matrix + 36])[:2] == (65536, 0)
    data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "clip.mp4").write_bytes(data)
    shown = np.rot90(frame, -angle // 90)
    shown = shown[:, ::-1] if mirrored else shown
    for read in read_frames(tmp_path / "clip.mp4"):
        assert read.shape == shown.shape
        assert read.flags.c_contiguous
        assert np.abs(read.astype(int) - shown).mean() < 8


def test_frames_of_uneven_times_come_once_each_in_their_order(tmp_path: Path) -> None:
    with av.open(tmp_path / "clip.mkv", "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for level, time in zip(range(8), (0, 33, 40, 500, 510, 1400, 1433, 3000), strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 30 * level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    levels = [frame.mean() / 30 for frame in read_frames(tmp_path / "clip.mkv")]
    assert np.abs(np.array(levels) - range(8)).max() < 0.3


@pytest.mark.parametrize("name", ["stack.tif", "clip.gif", "clip.webp", "clip.png"])
def test_pages_and_animations_are_clips(tmp_path: Path, name: str) -> None:
    pages = [Image.fromarray(frame) for frame in moving(4)]
    settings = {"lossless": True} if name.endswith("webp") else {}
    timed = {} if name.endswith("tif") else {"duration": 100}
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], **settings, **timed)
    read = list(read_frames(tmp_path / name))
    assert len(read) == 4
    assert all(np.abs(a.astype(int) - b).mean() < 8 for a, b in zip(read, moving(4), strict=True))
    assert frame_rate(tmp_path / name, default=5) == (10 if timed else 5)


@pytest.mark.parametrize("folder", [True, False])
def test_frames_of_16_bits_are_scaled_alike(tmp_path: Path, folder: bool) -> None:
    pages = [Image.fromarray(np.full((8, 8), value, np.uint16)) for value in (100, 30000)]
    if folder:
        for t, page in enumerate(pages):
            page.save(tmp_path / f"{t}.png")
    else:
        pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    assert [frame.max() for frame in read_frames(tmp_path if folder else tmp_path / "stack.tif")] == [0, 117]


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


def test_a_title_in_any_encoding_is_no_error(tmp_path: Path) -> None:
    with av.open(tmp_path / "clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        container.metadata["title"] = "Cafe au lait"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode())
    written = (tmp_path / "clip.mp4").read_bytes()
    assert written.count(b"Cafe") == 1
    (tmp_path / "clip.mp4").write_bytes(written.replace(b"Cafe", b"Caf\xe9"))
    assert len(list(read_frames(tmp_path / "clip.mp4"))) == 1
    assert len(ClipFrames(tmp_path / "clip.mp4")) == 1
    assert frame_rate(tmp_path / "clip.mp4") == 5


def noisy_clip(path: Path) -> Path:
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(40):
            pixels = noise.integers(0, 256, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("ending", ["avi", "mkv", "ts"])
def test_of_damaged_frames_it_is_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str) -> None:
    path = noisy_clip(tmp_path / f"clip.{ending}")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = np.random.default_rng(1).integers(0, 256, 600, np.uint8).tobytes()
    path.write_bytes(content)
    list(read_frames(path))
    assert re.search(rf"clip\.{ending} is damaged near frame \d+: that one and later ones may be wrong", caplog.text)
    assert caplog.text.count("is damaged near") == 1


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("avi", r"whole\.avi says that it has 40 frames, and has \d+: it may be cut off"),
        ("mkv", r"whole\.mkv says that it lasts 1\.60 s, and its pictures end after [01]\.\d\d s"),
    ],
)
def test_of_a_video_that_breaks_off_it_is_warned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str, message: str
) -> None:
    path = noisy_clip(tmp_path / f"whole.{ending}")
    assert len(list(read_frames(path))) == 40
    assert not caplog.text
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    assert 10 < len(list(read_frames(path))) < 30
    assert re.search(message, caplog.text), caplog.text


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


def test_frames_that_the_encoder_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(QSAM2Error, match="the encoder may not take 20000 x 16 pixels: leave the video out"):
        write_video(tmp_path / "clip.mp4", [np.zeros((16, 20000, 3), np.uint8)])
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
