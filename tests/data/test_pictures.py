from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsam2_ao.data.pictures import list_pictures, read_ids, read_rgb
from qsam2_ao.errors import DataError


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_reads_every_mode_as_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.fromarray(np.full((4, 6, 3), 102, np.uint8)).convert(mode).save(path)
    picture = read_rgb(path)
    assert picture.shape == (4, 6, 3)
    assert picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - 102).max() <= 2


@pytest.mark.parametrize("mode", ["P", "L"])
def test_ids_are_the_stored_numbers(tmp_path: Path, mode: str) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    picture = Image.fromarray(ids, mode="L")
    if mode == "P":
        picture = Image.fromarray(ids, mode="P")
        picture.putpalette(list(range(255, -1, -1)) * 3)
    picture.save(tmp_path / "m.png")
    assert np.array_equal(read_ids(tmp_path / "m.png"), ids)


def test_black_and_white_masks_are_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "m.png")
    assert np.array_equal(read_ids(tmp_path / "m.png"), np.eye(4, dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_masks_of_colours_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png has mode .*object ids"):
        read_ids(tmp_path / "m.png")


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


def test_lists_by_number_and_leaves_other_files_out(tmp_path: Path) -> None:
    for name in ("10.jpg", "9.JPG", "100.png", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_pictures(tmp_path)] == ["9.JPG", "10.jpg", "100.png"]
    (tmp_path / "a.jpg").touch()
    assert [path.name for path in list_pictures(tmp_path)] == ["10.jpg", "100.png", "9.JPG", "a.jpg"]
    with pytest.raises(DataError, match="nowhere is not a folder"):
        list_pictures(tmp_path / "nowhere")


def test_a_phone_photograph_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0] = 255  # the left half is red
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    upright = read_rgb(tmp_path / "phone.png")
    assert upright.shape == (40, 20, 3)
    assert upright[0, 0, 0] == 255
    assert upright[-1, 0, 0] == 0
