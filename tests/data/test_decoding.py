"""Opening files of every format, of any size, and of several pages."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsam2_ao.data.decoding import (
    MAX_PIXELS,
    max_pixels,
    open_pages,
    open_picture,
    page_rate,
    picture_size,
    pixel_limit,
)
from qsam2_ao.data.pictures import read_rgb
from qsam2_ao.errors import DataError

PIXELS = np.zeros((20, 40, 3), np.uint8)
PIXELS[:, :20, 0] = 255  # the left half is red


def stack(path: Path, count: int = 3, **settings: object) -> Path:
    pages = [Image.fromarray(np.roll(PIXELS, 10 * i, 1)) for i in range(count)]
    pages[0].save(path, save_all=True, append_images=pages[1:], **settings)
    return path


@pytest.mark.parametrize(
    "name", ["x.jpg", "x.png", "x.webp", "x.avif", "x.bmp", "x.gif", "x.tif", "x.ppm", "x.jp2", "x.heic"]
)
def test_reads_every_format(tmp_path: Path, name: str) -> None:
    if name == "x.heic":
        pytest.importorskip("pillow_heif").from_pillow(Image.fromarray(PIXELS)).save(tmp_path / name, quality=95)
    else:
        Image.fromarray(PIXELS).save(tmp_path / name)
    picture = read_rgb(tmp_path / name)
    assert picture.shape == PIXELS.shape
    assert np.abs(picture[:, :16].astype(int) - PIXELS[:, :16]).mean() < 8


def test_heic_under_another_name_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").from_pillow(Image.fromarray(PIXELS)).save(tmp_path / "x.heic")
    (tmp_path / "x.heic").rename(tmp_path / "x.jpg")
    assert read_rgb(tmp_path / "x.jpg").shape == PIXELS.shape


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.webp"])
def test_every_orientation_is_turned_upright(tmp_path: Path, name: str, orientation: int) -> None:
    shown = np.zeros((16, 32, 3), np.uint8)
    shown[:8, :16] = 255  # the upper left quarter
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: np.rot90(shown),
        7: np.rot90(shown, 2).transpose(1, 0, 2),
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif, quality=100)
    read = read_rgb(tmp_path / name)
    assert read.shape == shown.shape
    assert picture_size(tmp_path / name) == shown.shape[:2]
    assert np.abs(read.astype(int) - shown).mean() < 4


@pytest.mark.parametrize("name", ["ortho.png", "ortho.tif"])
def test_large_pictures_are_read_up_to_a_stated_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Image.new("1", (20000, 10000)).save(tmp_path / name)
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_picture(tmp_path / name).size == (20000, 10000)
    assert before == Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv("QSAM2_MAX_PIXELS", "150000000")
    with pytest.raises(DataError, match=r"200 megapixels, and the limit is 150: .*QSAM2_MAX_PIXELS=200000000"):
        open_picture(tmp_path / name)


def test_a_limit_holds_in_its_block_and_before_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (40, 25)).save(tmp_path / "x.png")
    monkeypatch.setenv("QSAM2_MAX_PIXELS", "10")
    with pixel_limit(1000):
        assert open_picture(tmp_path / "x.png").size == (40, 25)
        with pixel_limit(999), pytest.raises(DataError, match=r"--max-pixels 1000 .*pixel_limit"):
            open_picture(tmp_path / "x.png")
        assert read_rgb(tmp_path / "x.png").shape == (25, 40, 3)
    assert max_pixels() == 10
    for wrong in (0, -1, 1e9, True, "1000"):
        with pytest.raises(DataError, match="positive number of pixels"), pixel_limit(wrong):  # type: ignore[arg-type]
            pytest.fail("that is no limit")


@pytest.mark.parametrize("text", ["many", "0", "-5", "1e9"])
def test_a_wrong_limit_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("QSAM2_MAX_PIXELS", text)
    with pytest.raises(DataError, match=f"QSAM2_MAX_PIXELS={text}"):
        max_pixels()
    monkeypatch.setenv("QSAM2_MAX_PIXELS", "")
    assert max_pixels() == MAX_PIXELS


@pytest.mark.parametrize("name", ["x.tif", "x.gif", "x.webp", "x.png"])
def test_pages_are_frames_and_no_picture(tmp_path: Path, name: str) -> None:
    path = stack(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} holds 3 pictures .*video"):
        open_picture(path)
    assert [page.size for page in open_pages(path)] == [(40, 20)] * 3


def test_a_preview_is_no_page(tmp_path: Path) -> None:
    preview = Image.new("RGB", (10, 5))
    preview.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(PIXELS).save(tmp_path / "x.tif", save_all=True, append_images=[preview])
    assert np.array_equal(read_rgb(tmp_path / "x.tif"), PIXELS)
    assert [page.size for page in open_pages(tmp_path / "x.tif")] == [(40, 20)]
    stack(tmp_path / "phone.jpg", 2, format="MPO")
    assert read_rgb(tmp_path / "phone.jpg")[:, :16, 0].mean() > 240


def test_the_rate_of_an_animation(tmp_path: Path) -> None:
    assert page_rate(stack(tmp_path / "x.gif", duration=50)) == 20
    assert page_rate(stack(tmp_path / "x.tif")) is None


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.gif", "x.webp", "x.avif", "x.bmp", "x.ppm"])
def test_a_damaged_file_is_an_error_that_names_it_or_a_picture(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    errors: list[str] = []
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        (tmp_path / name).write_bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.5 else data)
        try:
            read_rgb(tmp_path / name)
        except DataError as error:
            errors.append(str(error))
    assert errors
    assert all(name in message for message in errors)


def test_no_program_is_asked_to_read_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript for PostScript, under whatever name."""
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "holiday.png").write_bytes(script)
    with pytest.raises(DataError, match=r"holiday\.png cannot be read"):
        read_rgb(tmp_path / "holiday.png")


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    for name, content in (("text.png", b"not a picture"), ("empty.jpg", b""), ("folder.png", None)):
        (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} cannot be read"):
            read_rgb(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        read_rgb(tmp_path / "none.png")
