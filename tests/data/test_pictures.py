"""Pictures of every mode and depth as RGB of 8 bits, never black or white in silence."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsam2_ao.data.pictures import FrameReader, read_ids, read_rgb, to_rgb
from qsam2_ao.errors import DataError

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "1"])
def test_reads_every_mode_as_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tiff" if mode in ("CMYK", "PA") else "x.jpg" if mode == "YCbCr" else "x.png")
    value = 255 if mode == "1" else 102
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).convert("L" if mode in ("LA", "1") else "RGB").convert(
        {"PA": "P"}.get(mode, mode)
    ).convert(mode).save(path)
    picture = read_rgb(path)
    assert picture.shape == (4, 6, 3)
    assert picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - value).max() <= 2


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("kind", ["x.png", "x.tif", "int32.tif"])
def test_greys_of_16_bits_are_scaled_from_the_bits_that_they_use(tmp_path: Path, bits: int, kind: str) -> None:
    values = np.rint(RAMP * (2**bits - 1)).astype(np.int32 if kind.startswith("int32") else np.uint16)
    Image.fromarray(values).save(tmp_path / kind)
    picture = read_rgb(tmp_path / kind)
    assert (picture == picture[..., :1]).all()
    assert np.abs(picture[..., 0] - RAMP * 255).max() <= 0.51


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_negatives_are_turned(tmp_path: Path, kind: type[np.unsignedinteger]) -> None:
    values = np.rint(RAMP * np.iinfo(kind).max).astype(kind)
    Image.fromarray(values).save(tmp_path / "x.tif")
    data = (tmp_path / "x.tif").read_bytes()
    tag = struct.pack("<HHI", 262, 3, 1)
    assert data.count(tag + b"\1") == 1
    (tmp_path / "x.tif").write_bytes(data.replace(tag + b"\1", tag + b"\0"))  # white is 0
    assert np.array_equal(read_rgb(tmp_path / "x.tif")[..., 0].ravel(), np.arange(255, -1, -1))


def test_a_tiff_of_another_kind_says_so(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "x.tif")
    data = (tmp_path / "x.tif").read_bytes()
    bits = struct.pack("<HHIH", 258, 3, 1, 32)
    assert data.count(bits) == 1
    (tmp_path / "x.tif").write_bytes(data.replace(bits, struct.pack("<HHIH", 258, 3, 1, 64)))
    with pytest.raises(DataError, match=r"x\.tif is a TIFF of a kind .* 8 or 16 bits"):
        read_rgb(tmp_path / "x.tif")


def test_fractions_are_scaled_from_0_to_1(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "x.tif")
    assert np.array_equal(read_rgb(tmp_path / "x.tif")[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP.astype(np.float32) * 255, "from 0 to 255, but fractions must be from 0 to 1"),
        (RAMP.astype(np.float32) - 0.5, "fractions must be"),
        (np.full((4, 4), np.nan, np.float32), "nan"),
        ((RAMP * 100000).astype(np.int32), "from 0 to 100000, but whole numbers"),
        ((RAMP * 100).astype(np.int32) - 50, "from -50 to"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=rf"x\.tif has values.*{message}" if message != "nan" else "nan"):
        read_rgb(tmp_path / "x.tif")


def test_frames_of_one_sequence_are_scaled_alike(tmp_path: Path) -> None:
    paths = [tmp_path / f"{t}.png" for t in range(3)]
    for path, top in zip(paths, (200, 3000, 30000), strict=True):
        Image.fromarray(np.rint(RAMP * top).astype(np.uint16)).save(path)
    assert read_rgb(paths[0]).max() == 200
    assert [FrameReader(paths)(path).max() for path in paths] == [1, 12, 117]


def test_colours_of_16_bits_keep_the_upper_8_and_nearly_black_ones_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cv2 = pytest.importorskip("cv2")
    colours = np.stack([RAMP, 1 - RAMP, RAMP * 0 + 0.5], -1)
    cv2.imwrite(str(tmp_path / "x.png"), np.rint(colours[..., ::-1] * 65535).astype(np.uint16))
    assert np.abs(read_rgb(tmp_path / "x.png") - colours * 255).max() <= 1
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "night.png")
    read_rgb(tmp_path / "night.png")
    assert not caplog.text
    cv2.imwrite(str(tmp_path / "y.png"), np.rint(colours * 4095).astype(np.uint16))
    with caplog.at_level(logging.WARNING):
        read_rgb(tmp_path / "y.png")
    assert "y.png is nearly black" in caplog.text


def test_pictures_in_memory_follow_the_same_rules() -> None:
    picture = Image.fromarray(np.rint(RAMP * 65535).astype(np.uint16))
    assert np.array_equal(to_rgb(picture, "it")[..., 2].ravel(), np.arange(256))
    with pytest.raises(DataError, match="it has mode"):
        to_rgb(Image.new("La", (2, 2)), "it")


@pytest.mark.parametrize("read", [read_rgb, read_ids])
def test_unreadable_files_are_named(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        read(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(DataError, match=r"text\.png cannot be read"):
        read(tmp_path / "text.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut\.png cannot be read"):
        read(tmp_path / "cut.png")
