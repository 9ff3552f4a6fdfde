"""The pictures: colours where the mask is and nowhere else."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter

from qsam2_ao.errors import DataError, QSAM2Error
from qsam2_ao.reporting.overlay import colour, draw_masks, draw_prompts, save_picture, shortened, side_by_side


@pytest.fixture
def grey() -> np.ndarray:
    return np.full((40, 60, 3), 100, np.uint8)


def test_neighbouring_colours_are_far_apart():
    colours = np.array([colour(i) for i in range(1, 25)], float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1000 * np.eye(24)
    assert distances.min() > 25
    assert np.diagonal(distances, 1).min() > 100


@given(object_id=st.integers(1, 10_000))
def test_colours_are_rgb_and_bright(object_id: int):
    values = colour(object_id)
    assert all(0 <= value <= 255 for value in values)
    assert max(values) >= 200


def test_only_the_mask_is_tinted(grey: np.ndarray):
    mask = np.zeros((40, 60), bool)
    mask[10:20, 20:40] = True
    drawn = np.asarray(draw_masks(grey, {3: mask}, opacity=0.5, contour=0))
    assert (drawn[~mask] == 100).all()
    assert np.abs(drawn[mask] - (np.array(colour(3)) + 100) / 2).max() <= 1
    assert (grey == 100).all()


def test_the_outline_is_opaque_and_inside(grey: np.ndarray):
    mask = np.zeros((40, 60), bool)
    mask[10:20, 20:40] = True
    drawn = np.asarray(draw_masks(grey, {1: mask}, opacity=0, contour=2))
    edge = mask.copy()
    edge[12:18, 22:38] = False
    assert (drawn[edge] == colour(1)).all()
    assert (drawn[~edge] == 100).all()


def test_a_mask_at_the_border_is_outlined_there(grey: np.ndarray):
    drawn = np.asarray(draw_masks(grey, {1: np.ones((40, 60), bool)}, opacity=0, contour=1))
    assert (drawn[0] == colour(1)).all()
    assert (drawn[1:-1, 1:-1] == 100).all()


@given(mask=arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24))), width=st.integers(1, 9))
def test_the_outline_is_what_a_minimum_filter_takes_away(mask: np.ndarray, width: int):
    framed = Image.fromarray(np.pad(mask.astype(np.uint8), width))
    inside = np.asarray(framed.filter(ImageFilter.MinFilter(2 * width + 1)))[width:-width, width:-width]
    black = np.zeros((*mask.shape, 3), np.uint8)
    drawn = np.asarray(draw_masks(black, {1: mask}, opacity=0, contour=width))
    assert np.array_equal(drawn.any(-1), mask & (inside == 0))


def test_a_large_picture_is_drawn_within_a_fraction_of_a_second():
    rows, columns = np.mgrid[:2160, :3840]
    ids = (np.hypot(rows - 1000, columns - 2000) < 1500).astype(np.uint8)
    image = np.zeros((2160, 3840, 3), np.uint8)
    cost = []
    for _ in range(3):
        start = time.process_time()
        draw_masks(image, ids)
        cost.append(time.process_time() - start)
    assert min(cost) < 1  # 0.1 on one core of today; the minimum filter of this width took 7


def test_an_id_map_draws_what_the_single_masks_draw(grey: np.ndarray):
    ids = np.zeros((40, 60), np.uint8)
    ids[5:15, 5:15], ids[20:30, 30:50] = 1, 7
    from_map = draw_masks(Image.fromarray(grey), ids)
    from_masks = draw_masks(grey, {1: ids == 1, 7: ids == 7})
    assert from_map.tobytes() == from_masks.tobytes()


def test_an_empty_mask_changes_nothing(grey: np.ndarray):
    assert (np.asarray(draw_masks(grey, {1: np.zeros((40, 60), bool)})) == 100).all()


def test_a_mask_of_another_size_is_refused(grey: np.ndarray):
    with pytest.raises(DataError, match=r"object 2 is \(60, 40\).*image is \(40, 60\)"):
        draw_masks(grey, {2: np.zeros((60, 40), bool)})


def test_prompts_are_marked_where_they_are(grey: np.ndarray):
    drawn = draw_prompts(grey, points=[(10, 20, 1), (50, 20, 0)], boxes=[(5, 5, 55, 35)])
    large = draw_prompts(grey, points=[(10, 20, 1)], radius=8)
    assert (drawn.getpixel((15, 20)), large.getpixel((15, 20))) == ((100, 100, 100), (0, 255, 0))
    assert drawn.getpixel((10, 20)) == (0, 255, 0)
    assert drawn.getpixel((50, 20)) == (255, 0, 0)
    assert drawn.getpixel((30, 5)) == (255, 255, 255)
    assert drawn.getpixel((30, 20)) == (100, 100, 100)


def test_panels_keep_every_picture(grey: np.ndarray):
    pictures = [Image.new("RGB", (60, 40), colour(i)) for i in (1, 2, 3)]
    sheet = side_by_side(pictures, ["a", "b", "c"], columns=2, min_width=60)
    assert sheet.size == (2 * 66 + 6, 2 * 66)
    assert [sheet.getpixel(place) for place in ((30, 40), (100, 40), (30, 106))] == [colour(i) for i in (1, 2, 3)]
    assert np.asarray(sheet)[:20, :66].max() == 255  # a title


@pytest.mark.parametrize("left", range(80, 86))
def test_a_thin_line_is_still_there_in_a_smaller_panel(left: int):
    boxed = draw_prompts(Image.new("RGB", (400, 400)), (), [(left, 80, 300, 300)], radius=3)
    sheet = np.asarray(side_by_side([Image.new("RGB", (240, 240)), boxed], ["", ""]))
    panel = sheet[20:260, 252:492]
    x = round(left * 0.6)
    assert panel[100, x - 2 : x + 3].max() > 100


def test_a_long_title_stays_above_its_picture():
    pictures = [Image.new("RGB", (120, 40), colour(1))] * 2
    long = side_by_side(pictures, ["a model's long name, object 16", ""], min_width=120)
    assert np.asarray(long)[:20, :126].max() == 255
    assert len(np.unique(np.asarray(long)[:20, 126:].reshape(-1, 3), axis=0)) == 1, "nothing reaches over the next one"
    assert shortened("a model's long name, object 16", 16, len) == "a model'…ject 16"
    assert shortened("short", 16, len) == "short"


def test_panels_need_titles(grey: np.ndarray):
    with pytest.raises(DataError, match="1 pictures and 0 titles"):
        side_by_side([Image.fromarray(grey)], [])


def test_pictures_are_saved_whole(tmp_path: Path, grey: np.ndarray):
    path = save_picture(Image.fromarray(grey), tmp_path / "new" / "picture.png")
    assert (np.asarray(Image.open(path)) == grey).all()
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


def test_unwritable_pictures_say_why(tmp_path: Path, grey: np.ndarray):
    with pytest.raises(DataError, match=r"'\.txt'"):
        save_picture(Image.fromarray(grey), tmp_path / "picture.txt")
    (tmp_path / "file").touch()
    with pytest.raises(QSAM2Error, match="cannot write"):
        save_picture(Image.fromarray(grey), tmp_path / "file" / "picture.png")
