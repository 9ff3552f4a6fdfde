"""Prompts as people write them, and what is said about those that cannot be meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qsam2_ao.errors import DataError
from qsam2_ao.segmentation.prompts import parse_prompts

SIZE = (64, 48)


def mask_file(path: Path, ids: np.ndarray, mode: str = "P") -> str:
    picture = Image.fromarray(ids.astype(np.uint8))
    if mode == "P":
        picture.putpalette(bytes(range(256)) * 3)
    picture.save(path)
    return str(path)


def test_points_and_a_box_of_one_object():
    prompts = parse_prompts(SIZE, points=["10,20", "30.5,40,0"], boxes=["1,2,60,47"])
    assert list(prompts) == [1]
    arrays = prompts[1].arrays()
    np.testing.assert_array_equal(arrays["points"], [[10, 20], [30.5, 40]])
    np.testing.assert_array_equal(arrays["labels"], [1, 0])
    np.testing.assert_array_equal(arrays["box"], [1, 2, 60, 47])


def test_several_objects_in_order():
    prompts = parse_prompts(SIZE, points=["7:1,2", "3:4,4,1", "7:5,6,0"], boxes=["2:0,0,64,48"])
    assert list(prompts) == [2, 3, 7]
    assert prompts[7].points == [(1, 2, 1), (5, 6, 0)]
    assert prompts[2].arrays() == {"points": None, "labels": None, "box": pytest.approx([0, 0, 64, 48])}


@given(x=st.floats(0, 64), y=st.floats(0, 48), label=st.sampled_from([0, 1]), object_id=st.integers(1, 255))
def test_what_is_written_is_what_is_read(x: float, y: float, label: int, object_id: int):
    prompts = parse_prompts(SIZE, points=[f"{object_id}:{x!r},{y!r},{label}"])
    assert prompts[object_id].points == [(x, y, label)]


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_mask_file_names_its_objects(tmp_path: Path, mode: str):
    ids = np.zeros((48, 64))
    ids[:10], ids[20:30] = 3, 9
    prompts = parse_prompts(SIZE, masks=[mask_file(tmp_path / "m.png", ids, mode)])
    assert list(prompts) == [3, 9]
    np.testing.assert_array_equal(prompts[9].mask, ids == 9)


def test_a_black_and_white_mask_is_one_object(tmp_path: Path):
    ids = np.zeros((48, 64))
    ids[:10] = 255
    name = mask_file(tmp_path / "m.png", ids, "L")
    assert list(parse_prompts(SIZE, masks=[name])) == [1]
    assert list(parse_prompts(SIZE, masks=[f"4:{name}"], boxes=["2:0,0,5,5"])) == [2, 4]
    Image.fromarray(ids > 0).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(parse_prompts(SIZE, masks=[str(tmp_path / "bits.png")])[1].mask, ids > 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "say what to look for"),
        ({"points": ["10"]}, "expected X,Y"),
        ({"points": ["a,b"]}, "expected X,Y"),
        ({"points": ["nan,1"]}, "expected X,Y"),
        ({"points": ["1,2,3,4"]}, "expected X,Y"),
        ({"points": ["1,2,2"]}, "label must be 1"),
        ({"points": ["65,2"]}, "outside of the picture, which is 64 x 48"),
        ({"points": ["0:1,2"]}, "ids are 1 to 255"),
        ({"points": ["256:1,2"]}, "ids are 1 to 255"),
        ({"boxes": ["1,2,3"]}, "expected X0,Y0,X1,Y1"),
        ({"boxes": ["30,2,10,20"]}, "left,top,right,bottom"),
        ({"boxes": ["1,2,30,200"]}, "outside of the picture"),
        ({"boxes": ["1,2,3,4", "1,2,3,5"]}, r"two boxes; write --box ID:1,2,3,5"),
        ({"masks": ["absent.png"]}, r"absent\.png: no such file"),
    ],
)
def test_prompts_that_cannot_be_meant(given: dict[str, list[str]], message: str):
    with pytest.raises(DataError, match=message):
        parse_prompts(SIZE, **given)


def test_masks_that_cannot_be_used(tmp_path: Path):
    small = mask_file(tmp_path / "small.png", np.ones((20, 30)))
    with pytest.raises(DataError, match="30 x 20 pixels but the picture is 64 x 48"):
        parse_prompts(SIZE, masks=[small])
    empty = mask_file(tmp_path / "empty.png", np.zeros((48, 64)))
    with pytest.raises(DataError, match="every pixel is 0"):
        parse_prompts(SIZE, masks=[empty])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(DataError, match="cannot be read"):
        parse_prompts(SIZE, masks=[str(text)])
    full = mask_file(tmp_path / "full.png", np.ones((48, 64)))
    with pytest.raises(DataError, match="a mask and another prompt"):
        parse_prompts(SIZE, points=["1,1"], masks=[full])
    with pytest.raises(DataError, match="a mask and another prompt"):
        parse_prompts(SIZE, masks=[full, full])
