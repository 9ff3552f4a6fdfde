"""Masks of every variety: ids as they stand, one object from black and white, and the rest refused with the reason."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from qsam2_ao.data import masks
from qsam2_ao.data.masks import MaskReader, davis_colours, decode_mask, read_ids
from qsam2_ao.errors import DataError
from qsam2_ao.segmentation import save_label_map

ROWS, COLUMNS = np.mgrid[:96, :128]
DISC = np.hypot(ROWS - 48, COLUMNS - 60) < 30
IDS = (DISC * 1 + (COLUMNS > 90) * 2).astype(np.uint8)
IDS[DISC & (COLUMNS > 60)] = 7


def save(path: Path, values: NDArray[np.generic], mode: str | None = None, **settings: object) -> Path:
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette(davis_colours().tobytes())
    elif mode is not None:
        picture = picture.convert(mode)
    picture.save(path, **settings)
    return path


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float32])
def test_ids_are_the_stored_numbers(tmp_path: Path, kind: type[np.generic]) -> None:
    assert np.array_equal(read_ids(save(tmp_path / "m.tif", IDS.astype(kind))), IDS)
    if kind is np.uint8:
        assert np.array_equal(read_ids(save(tmp_path / "m.png", IDS, "P")), IDS)
        assert np.array_equal(read_ids(save(tmp_path / "m.bmp", IDS)), IDS)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 254), side=st.integers(1, 9), void=st.booleans())
@settings(max_examples=40)
def test_objects_of_any_number_and_size_stay_what_they_are(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, side: int, void: bool
) -> None:
    rng = np.random.default_rng(seed)
    ids = np.zeros((60, 80), np.uint8)
    for identity in rng.permutation(count) + 1:
        y, x = rng.integers(0, 60), rng.integers(0, 80)
        if void:
            ids[max(y - 1, 0) : y + side + 1, max(x - 1, 0) : x + side + 1] = 255
        ids[y : y + side, x : x + side] = identity
    ids[:4, :8] = 3  # so that 255 is not alone
    path = save(tmp_path_factory.mktemp("masks") / "m.png", ids, "P")
    assert np.array_equal(read_ids(path), ids)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 253))
@settings(max_examples=20)
def test_what_this_package_writes_comes_back_however_ragged(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    ids = np.random.default_rng(seed).integers(0, count + 2, (20, 30)).astype(np.uint8)
    ids[0, :2] = 1, 2
    assert np.array_equal(read_ids(save_label_map(ids, tmp_path_factory.mktemp("masks") / "m.png")), ids)


def test_ids_of_16_bits_are_read_and_too_large_ones_refused_where_8_are_wanted(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", IDS.astype(np.uint16) * 100)
    assert np.array_equal(decode_mask(path).ids, IDS.astype(int) * 100)
    with pytest.raises(DataError, match=r"m\.png has the id 700, and ids are 1 to 254"):
        read_ids(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bool.png", DISC),
        ("grey.png", DISC.astype(np.uint8) * 255),
        ("one.png", DISC.astype(np.uint8)),
        ("colour.png", np.repeat(DISC[..., None].astype(np.uint8) * 255, 3, 2)),
        ("wide.png", DISC.astype(np.uint16) * 65535),
        ("float.tif", DISC.astype(np.float32)),
        ("float255.tif", DISC.astype(np.float32) * 255),
        ("carvana.gif", DISC.astype(np.uint8) * 255),
        ("x.webp", DISC.astype(np.uint8) * 255),
    ],
)
def test_black_and_white_is_one_object(tmp_path: Path, name: str, values: NDArray[np.generic]) -> None:
    lossless = {"lossless": True} if name.endswith("webp") else {}
    assert np.array_equal(read_ids(save(tmp_path / name, values, **lossless)), DISC)


def test_a_black_and_white_palette_the_other_way_round(tmp_path: Path) -> None:
    picture = Image.fromarray((~DISC).astype(np.uint8), mode="P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "m.png")
    assert np.array_equal(read_ids(tmp_path / "m.png"), DISC)


def smooth(mask: NDArray[np.bool_], radius: float) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(radius))


SOFT = {
    "blurred.png": lambda path: smooth(DISC, 1).save(path),
    "very blurred.png": lambda path: smooth(DISC, 3).save(path),
    "half covered.png": lambda path: Image.fromarray(DISC).convert("L").reduce(2).resize((128, 96), 0).save(path),
    "resized.png": lambda path: Image.fromarray(DISC).convert("L").resize((64, 48)).resize((128, 96)).save(path),
    "m.jpg": lambda path: Image.fromarray(DISC).convert("L").save(path, quality=70),
    "colour.jpg": lambda path: Image.fromarray(DISC).convert("RGB").save(path, quality=30),
    "soft.gif": lambda path: smooth(DISC, 1).save(path),
    "grey alpha.png": lambda path: smooth(DISC, 1).convert("LA").save(path),
    "alpha.png": lambda path: smooth(DISC, 1).convert("RGBA").save(path),
    "fractions.tif": lambda path: Image.fromarray(np.asarray(smooth(DISC, 1)).astype(np.float32) / 255).save(path),
    "wide.png": lambda path: Image.fromarray(np.asarray(smooth(DISC, 1)).astype(np.uint16) * 257).save(path),
}


@pytest.mark.parametrize("name", SOFT)
def test_soft_edges_are_cut_at_half_and_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    SOFT[name](tmp_path / name)
    with caplog.at_level(logging.WARNING):
        ids = read_ids(tmp_path / name)
    assert np.unique(ids).tolist() == [0, 1]
    edge = (np.asarray(smooth(DISC, 1)) > 0) & (np.asarray(smooth(~DISC, 1)) > 0)
    assert np.array_equal(ids[~edge], DISC[~edge])
    assert f"{name} has soft edges" in caplog.text


def test_a_jpeg_of_a_mask_saved_as_png_is_soft_edged(tmp_path: Path) -> None:
    for quality in (30, 75, 95):
        Image.fromarray(DISC).convert("L").save(tmp_path / "m.jpg", quality=quality)
        Image.open(tmp_path / "m.jpg").save(tmp_path / f"{quality}.png")
        ids = read_ids(tmp_path / f"{quality}.png")
        assert np.unique(ids).tolist() == [0, 1]
        assert np.count_nonzero(ids != DISC) < 30


def test_a_folder_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks._told.clear()
    for t in range(3):
        smooth(DISC, 1).save(tmp_path / f"{t}.png")
        with caplog.at_level(logging.WARNING):
            read_ids(tmp_path / f"{t}.png")
    assert caplog.text.count("soft edges") == 1


RNG = np.random.default_rng(0)
REFUSED = {
    "photograph.png": (np.asarray(smooth(RNG.random((96, 128)) > 0.5, 2)), None, "neither ids nor the soft edges"),
    "noise.jpg": (RNG.integers(0, 255, (96, 128, 3), np.uint8), None, "colours|neither"),
    "ids.jpg": (IDS, None, "neither ids nor the soft edges"),
    "smoothed ids.png": (
        np.asarray(Image.fromarray(IDS * 25).resize((90, 70), Image.Resampling.BILINEAR)),
        None,
        "resize them without smoothing",
    ),
    "panoptic.png": (np.stack([IDS * 31, IDS * 3, IDS // 2], -1), None, "4 colours, not those of DAVIS's palette"),
    "cutout.png": (np.dstack([np.zeros((96, 128, 3), np.uint8), DISC.astype(np.uint8) * 255]), None, "alpha channel"),
    "negative.tif": (IDS.astype(np.int32) - 1, None, "the value -1"),
    "nan.tif": (np.where(DISC, np.nan, 0).astype(np.float32), None, "NaN"),
    "cmyk.tif": (np.zeros((9, 9, 3), np.uint8), "CMYK", "has mode CMYK"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    values, mode, message = REFUSED[name]
    save(tmp_path / name, values, mode)
    with pytest.raises(DataError, match=rf"{name} .*({message})"):
        read_ids(tmp_path / name)


def test_colours_of_daviss_palette_are_their_ids(tmp_path: Path) -> None:
    ids = np.where(IDS == 7, 255, IDS)
    save(tmp_path / "m.png", davis_colours()[ids])
    assert np.array_equal(read_ids(tmp_path / "m.png"), ids)


def test_255_is_void_beside_ids_of_the_same_sequence(tmp_path: Path) -> None:
    band = np.where(ROWS < 5, 255, 0).astype(np.uint8)
    paths = [save(tmp_path / f"{t}.png", values) for t, values in enumerate((band, np.maximum(band, DISC), band * 0))]
    read = MaskReader(paths)
    assert [np.unique(read(path)).tolist() for path in paths] == [[0, 255], [0, 1, 255], [0]]
    assert [np.unique(MaskReader(paths[::2])(path)).tolist() for path in paths[::2]] == [[0, 1], [0]]
    assert np.unique(read_ids(paths[0])).tolist() == [0, 1]


def test_masks_are_turned_as_their_pictures_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IDS).save(tmp_path / "m.png", exif=exif)
    assert np.array_equal(read_ids(tmp_path / "m.png"), np.rot90(IDS, -1))


def test_small_objects_beside_void_stay_ids(tmp_path: Path) -> None:
    """None of them has as much inside as outline, and all ids are dark."""
    ids = np.zeros((480, 640), np.uint8)
    ids[100:105, 100:105], ids[200:206, 300:306], ids[300:303, 50:80], ids[400:404, 500:520] = 1, 2, 3, 255
    assert np.array_equal(read_ids(save(tmp_path / "m.png", ids)), ids)
    outlined = np.zeros((480, 640), np.uint8)
    outlined[99:107, 99:107], outlined[100:106, 100:106] = 255, 1
    assert np.array_equal(read_ids(save(tmp_path / "o.png", outlined)), outlined)
