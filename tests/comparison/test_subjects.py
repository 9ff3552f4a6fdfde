"""Prompts of the user's pictures and clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qsam2_ao.comparison import PromptPlan, user_subjects
from qsam2_ao.errors import DataError


def test_a_file_has_prompts_by_name(picture: Path, clip: Path, tmp_path: Path):
    file = tmp_path / "prompts.json"
    file.write_text(
        json.dumps(
            {
                "picture.png": [{"points": [[10, 20]]}],
                str(clip): [{"frame": 1, "object": 7, "box": [1, 2, 30, 40]}],
            }
        )
    )
    of_picture, of_clip = user_subjects([picture], [clip], PromptPlan(file))
    assert of_picture.open()[1][0][1].points == [(10, 20, 1)]
    assert of_clip.open()[1][1][7].box == (1, 2, 30, 40)


def test_a_list_is_asked_on_each(picture: Path, clip: Path, tmp_path: Path):
    file = tmp_path / "prompts.json"
    file.write_text('[{"box": [1, 2, 30, 40]}]')
    schedules = [subject.open()[1] for subject in user_subjects([picture], [clip], PromptPlan(file))]
    assert schedules[0] == schedules[1]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"other.png": []}, "there is no picture or clip 'other.png'"),
        ({"clip": [{"points": [[1, 1]]}]}, r"has no prompts for .*picture.png"),
        ({"picture.png": [{"points": [[1, 1]]}], "clip": []}, r"prompts.json, clip: wanted a list"),
        ({"picture.png": [{"points": [[1000, 1]]}], "clip": [{"points": [[1, 1]]}]}, r"picture.png, item 1"),
        ([{"points": [[1, 1]], "frame": 9}], "frame 9 is beyond the clip"),
        (5, "wanted a list of prompts"),
    ],
)
def test_prompts_are_checked_before_anything_runs(picture: Path, clip: Path, tmp_path: Path, prompts, message: str):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(prompts))
    with pytest.raises(DataError, match=message):
        user_subjects([picture], [clip], PromptPlan(file))


def test_what_is_absent_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"absent.png: no such file"):
        user_subjects([tmp_path / "absent.png"], [])
    with pytest.raises(DataError, match="1 to 15"):
        PromptPlan(grid=16)
