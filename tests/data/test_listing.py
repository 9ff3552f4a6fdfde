"""Which files are pictures, in what order, and which are masks beside photographs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsam2_ao.data.listing import PICTURE_SUFFIXES, find_photographs, list_pictures, natural_key
from qsam2_ao.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


@given(numbers=st.lists(st.integers(0, 10**30), unique=True), prefix=st.sampled_from(["", "frame_", "a1-", "Ä"]))
def test_numbers_count_as_numbers(numbers: list[int], prefix: str) -> None:
    ordered = sorted((f"{prefix}{number}" for number in numbers), key=natural_key)
    assert ordered == [f"{prefix}{number}" for number in sorted(numbers)]


@given(st.lists(st.text(max_size=6), max_size=6))
def test_any_names_have_an_order(texts: list[str]) -> None:
    assert sorted(sorted(texts, key=natural_key, reverse=True), key=natural_key) == sorted(texts, key=natural_key)


def test_lists_in_the_order_of_time_and_leaves_other_files_out(tmp_path: Path) -> None:
    touch(tmp_path, "10.jpg", "9.JPG", "100.png", "._9.jpg", ".DS_Store", "Thumbs.db", "notes.txt", "folder.jpg/x")
    assert names(list_pictures(tmp_path), tmp_path) == ["9.JPG", "10.jpg", "100.png"]
    touch(tmp_path, "frame_10.jpg", "frame_2.jpg", "Frame_1.jpg")
    assert names(list_pictures(tmp_path), tmp_path)[3:] == ["Frame_1.jpg", "frame_2.jpg", "frame_10.jpg"]
    with pytest.raises(DataError, match="nowhere is not a folder"):
        list_pictures(tmp_path / "nowhere")


def test_every_ending_counts_everywhere(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}{suffix}" for i, suffix in enumerate(PICTURE_SUFFIXES)))
    assert len(list_pictures(tmp_path)) == len(find_photographs(tmp_path)) == len(PICTURE_SUFFIXES)
    assert {".tif", ".tiff", ".webp", ".avif", ".heic", ".jpg", ".png"} <= {*PICTURE_SUFFIXES}


@pytest.mark.parametrize("other", ["00000.png", "00000.JPG"])
def test_one_name_with_two_endings_is_refused(tmp_path: Path, other: str) -> None:
    touch(tmp_path, "00000.jpg", "00001.jpg", other)
    for read in (list_pictures, find_photographs):
        with pytest.raises(DataError, match=r"00000\.\w+ and 00000\.\w+ have one name"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("photographs", "masks"),
    [
        ("JPEGImages/480p/bear/{}.jpg", "Annotations/480p/bear/{}.png"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
        ("train/images/{}.jpg", "train/masks/{}.png"),
        ("images/{}.jpg", "annotations/deep/{}.png"),
        ("leftImg8bit/{}.png", "gtFine/{}.png"),
        ("train2017/{}.jpg", "panoptic_train2017/{}.png"),
        ("masked singers/{}.jpg", "Masks_2/{}.png"),
        ("labelled/{}.jpg", "labels/{}.png"),
        ("gtx/{}.jpg", "ground truth/{}.png"),
        ("{}.jpg", "{}_mask.png"),
        ("{}.jpg", "{}_overlay.png"),
    ],
)
def test_masks_beside_photographs_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, photographs: str, masks: str
) -> None:
    touch(tmp_path, *(kind.format(i) for kind in (photographs, masks) for i in range(11)))
    with caplog.at_level(logging.WARNING):
        assert names(find_photographs(tmp_path), tmp_path) == [photographs.format(i) for i in range(11)]
    assert "11 pictures below" in caplog.text
    assert masks.format(0) in caplog.text


@pytest.mark.parametrize("end", ["mask", "overlay"])
def test_results_beside_the_frames_of_a_clip_are_refused(tmp_path: Path, end: str) -> None:
    touch(tmp_path, "0.jpg", f"0_{end}.png", "1.jpg", f"1_{end}.png")
    with pytest.raises(
        DataError, match=rf"0_{end}\.png is named like a result .*\(2 such files\).* would count as a frame"
    ):
        list_pictures(tmp_path)
    alone = tmp_path / "alone"
    touch(alone, f"0_{end}.png", f"1_{end}.png")
    assert len(list_pictures(alone)) == 2


def test_a_folder_that_is_named_itself_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "masks/0.jpg", "masks/carnival/1.jpg", "masks/1_mask.jpg")
    assert len(find_photographs(tmp_path / "masks")) == 3
    assert not caplog.text
    with pytest.raises(DataError, match=r"the 3 pictures below .* are named like masks"):
        find_photographs(tmp_path)


def test_hidden_folders_and_those_of_systems_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", ".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/a/1.jpg", "a/@eaDir/1.jpg", "a/._1.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert names(find_photographs(tmp_path), tmp_path) == ["a/1.jpg"]
    with pytest.raises(DataError, match="nowhere is not a folder"):
        find_photographs(tmp_path / "nowhere")
