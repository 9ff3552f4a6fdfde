"""Prompts as people write them, and what is said about those that cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qsam2_ao.errors import DataError
from qsam2_ao.segmentation.prompts import parse_prompts, parse_schedule

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


@given(x=st.floats(0, 64), y=st.floats(0, 48), label=st.sampled_from([0, 1]), object_id=st.integers(1, 254))
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


def test_void_in_a_mask_file_is_no_object(tmp_path: Path):
    ids = np.zeros((48, 64))
    ids[:10], ids[20:30] = 255, 9
    name = mask_file(tmp_path / "m.png", ids, "L")
    assert list(parse_prompts(SIZE, masks=[name])) == [9]
    np.testing.assert_array_equal(parse_prompts(SIZE, masks=[f"4:{name}"])[4].mask, ids == 9)


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
        ({"points": ["3@1,2"]}, "frame 3 is beyond the clip, which has 1 frame, 0 to 0"),
        ({"points": ["0:1,2"]}, "ids are 1 to 254"),
        ({"points": ["255:1,2"]}, "ids are 1 to 254"),
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
    with pytest.raises(DataError, match=r"--mask .*full\.png: object 1 has a mask and another prompt"):
        parse_prompts(SIZE, points=["1,1"], masks=[full])
    with pytest.raises(DataError, match="a mask and another prompt"):
        parse_prompts(SIZE, masks=[full, full])


def test_options_for_later_frames(tmp_path: Path):
    ids = np.zeros((48, 64))
    ids[:10] = 3
    schedule = parse_schedule(
        SIZE,
        points=["10,20", "30@2:5,6,0", "30@7,8"],
        boxes=["30@2:1,2,60,47"],
        masks=[f"12@{mask_file(tmp_path / 'a@b.png', ids)}", f"13@9:{tmp_path / 'a@b.png'}"],
        removals=["40@2"],
        frames=41,
    )
    assert list(schedule) == [0, 12, 13, 30, 40]
    assert schedule[30][2].points == [(5, 6, 0)]
    assert schedule[30][2].box == (1, 2, 60, 47)
    assert schedule[30][1].points == [(7, 8, 1)]
    assert (list(schedule[12]), list(schedule[13]), schedule[40]) == ([3], [9], {2: None})


def test_a_json_file_says_the_same_as_options(tmp_path: Path):
    ids = np.zeros((48, 64))
    ids[:10] = 3
    mask_file(tmp_path / "mask.png", ids)
    items = [
        {"points": [[10, 20]], "remove": False},
        {"frame": 30, "object": 2, "points": [[5.5, 6], [7, 8]], "labels": [0, 1], "box": [1, 2, 60, 47]},
        {"frame": 12, "mask": "mask.png"},
        {"frame": 13, "object": 9, "mask": str(tmp_path / "mask.png")},
        {"frame": 40, "object": 2, "remove": True},
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(items), "utf-8-sig")  # as editors on Windows do
    found = parse_schedule(SIZE, file=tmp_path / "prompts.json")
    options = parse_schedule(
        SIZE,
        points=["10,20", "30@2:5.5,6,0", "30@2:7,8"],
        boxes=["30@2:1,2,60,47"],
        masks=[f"12@{tmp_path / 'mask.png'}", f"13@9:{tmp_path / 'mask.png'}"],
        removals=["40@2"],
    )
    assert repr(found) == repr(options)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, r"item 2: wanted an object such as .*, not 3"),
        ({}, "item 2: there is no prompt: give points, box, mask or remove"),
        ({"point": [[1, 2]]}, "item 2: 'point' is unknown; an item has frame, object, points"),
        ({"frame": -1, "points": [[1, 2]]}, "item 2: frame is -1; frames are counted from 0"),
        ({"frame": True, "points": [[1, 2]]}, "item 2: frame is true"),
        ({"frame": 50, "points": [[1, 2]]}, "item 2: frame 50 is beyond the clip, which has 50 frames, 0 to 49"),
        ({"object": 256, "points": [[1, 2]]}, "item 2: object 256 is no object id"),
        ({"object": "dog", "points": [[1, 2]]}, "item 2: object 'dog' is no object id"),
        ({"points": [1, 2]}, r"item 2: points has shape \[2\], wanted \[N, 2\]"),
        ({"points": "1,2"}, "item 2: points"),
        ({"points": [[1, 2]], "labels": [1, 0]}, r"item 2: labels has shape \[2\], wanted \[1\]"),
        ({"points": [[1, 2]], "labels": [7]}, "item 2: labels holds 7"),
        ({"points": [[1, 99]]}, "item 2: points has .* outside of the picture"),
        ({"points": [[10**400, 1]]}, "item 2: points"),
        ({"points": []}, "item 2: points"),
        ({"points": None}, "item 2: there is no prompt"),
        ({"labels": [1], "box": [1, 2, 3, 4]}, "item 2: labels has no points"),
        ({"box": [5, 2, 3, 4]}, r"item 2: box \[5, 2, 3, 4\] has no area"),
        ({"box": [[1, 2, 3, 4], [1, 2, 3, 5]]}, "item 2: box is for 2 objects"),
        ({"mask": 3}, "item 2: mask is 3; wanted the path of a mask PNG"),
        ({"mask": "absent.png"}, "item 2: .*absent.png: no such file"),
        ({"mask": "m.png", "box": [1, 2, 3, 4]}, "item 2: box and mask exclude each other"),
        ({"remove": True}, 'item 2: wanted "remove": true and the object'),
        ({"remove": 1, "object": 3}, "item 2: wanted"),
        ({"remove": True, "object": 1}, "item 2: object 1 has a prompt on frame 0 and is removed there"),
        ({"box": [1, 2, 3, 4], "object": 1}, "item 2: object 1 has two boxes"),
    ],
)
def test_items_that_cannot_be_meant(tmp_path: Path, item: Any, message: str):
    (tmp_path / "prompts.json").write_text(json.dumps([{"points": [[1, 2]], "box": [1, 2, 30, 40]}, item]))
    with pytest.raises(DataError, match=rf"^prompts\.json, {message}"):
        parse_schedule(SIZE, file=tmp_path / "prompts.json", frames=50)


@pytest.mark.parametrize(
    "content", [b"", b"[", b"{}", b"[]", b"\xff\xfe", b"[NaN]", b"[" * 100_000, b"1" * 5000, b'"\xc3("']
)
def test_files_that_hold_no_prompts(tmp_path: Path, content: bytes):
    (tmp_path / "prompts.json").write_bytes(content)
    with pytest.raises(DataError, match=r"prompts\.json"):
        parse_schedule(SIZE, file=tmp_path / "prompts.json")
    with pytest.raises(DataError, match="cannot be read"):
        parse_schedule(SIZE, file=tmp_path)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("m.png"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["frame", "object", "points", "labels", "box", "mask", "remove", "x"]), inner, max_size=4
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=_json)
def test_any_json_is_refused_or_a_schedule(tmp_path: Path, content: Any):
    (tmp_path / "prompts.json").write_text(json.dumps(content))
    try:
        schedule = parse_schedule(SIZE, file=tmp_path / "prompts.json", frames=50)
    except DataError:
        return
    assert any(prompt is not None for found in schedule.values() for prompt in found.values())


@pytest.mark.parametrize("text", ["2", "a@2", "3@", "3@0", "3@256", "-1@2"])
def test_removals_that_cannot_be_meant(text: str):
    with pytest.raises(DataError, match=f"--remove {text}: "):
        parse_schedule(SIZE, points=["1,2"], removals=[text])
