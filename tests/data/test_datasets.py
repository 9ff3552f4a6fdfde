from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qsam2_ao.data.annotation import Annotation
from qsam2_ao.data.datasets import open_dataset
from qsam2_ao.data.procedural import generate_sequence, write_sequence
from qsam2_ao.data.types import VideoSequence
from qsam2_ao.errors import DataError


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    root = tmp_path / "DAVIS"
    for index in range(3):
        write_sequence(generate_sequence("test", index, num_frames=2, size=(48, 64)), root)
    for name, lines in {
        "2016/val": ["test-00001"],
        "2017/train": ["test-00000", "test-00001"],
        "2017/val": ["test-00002"],
        "480p/train": [f"/JPEGImages/480p/test-00000/{t:05d}.jpg /Annotations/480p/test-00000/0.png" for t in (0, 1)],
    }.items():
        (root / f"ImageSets/{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_splits_of_davis_are_kept_apart(davis: Path) -> None:
    assert open_dataset(davis, split="train").names == ("test-00000", "test-00001")
    assert open_dataset(davis, split="valid").names == ("test-00002",)
    assert open_dataset(davis, default_split="val").split == "val"
    assert open_dataset(davis, split="480p/train").names == ("test-00000",)
    assert len(open_dataset(davis, split="all")) == 3
    for default in (None, "test-dev"):
        with pytest.raises(DataError, match=r"has the splits train, 2017/train, val, .*; choose one .*@train"):
            open_dataset(davis, default_split=default)
    with pytest.raises(DataError, match="unknown split 'test-dev'"):
        open_dataset(davis, split="test-dev")


def test_objects_of_2016_are_one(davis: Path) -> None:
    video = open_dataset(davis, split="2016/val")[0]
    assert video.object_ids == (1,)
    original = generate_sequence("test", 1, num_frames=2, size=(48, 64))
    annotation = video.annotation(1)
    assert annotation is not None
    assert np.array_equal(annotation.masks[1], original.masks[1] > 0)


def test_a_video_of_a_data_set(davis: Path) -> None:
    dataset = open_dataset(davis, split="all", sequences=["test-00002", "test-00000"])
    assert [video.name for video in dataset] == ["test-00002", "test-00000"]
    (davis / "Annotations/test-00000/00000.png").unlink()
    video = pickle.loads(pickle.dumps(dataset))[1]
    original = generate_sequence("test", 0, num_frames=2, size=(48, 64))
    assert isinstance(video, VideoSequence)
    assert video.frame_names == original.frame_names
    assert video.annotated == (1,)
    assert video.annotation(0) is None
    for found in (video.annotation(-1), original.annotation(1)):
        assert found is not None
        assert found.size == (48, 64)
        assert np.array_equal(found.ids(), original.masks[1])
    with pytest.raises(IndexError, match="has no frame 2"):
        video.annotation(2)


def test_a_listed_sequence_that_is_missing_is_named(davis: Path) -> None:
    (davis / "ImageSets/2017/val.txt").write_text("test-00002\nbear\n")
    with pytest.raises(DataError, match=r"JPEGImages/bear: no such folder, which should hold the frames of bear"):
        open_dataset(davis, split="val")
    with pytest.raises(DataError, match=r"has no sequence 'test-0002' in the split train; did you mean"):
        open_dataset(davis, split="train", sequences=["test-0002"])


def test_names_in_lists_may_have_spaces_and_a_mark_in_front(davis: Path) -> None:
    (davis / "ImageSets/2017/val.txt").write_text("my clip\n", encoding="utf-8-sig")
    with pytest.raises(DataError, match=r"JPEGImages/my clip: no such folder"):
        open_dataset(davis, split="val")


def test_unknown_layouts_and_formats_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="is not laid out like any data set"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match=r"unknown format 'davi'.* did you mean 'davis'"):
        open_dataset(tmp_path, "davi")
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset(tmp_path / "nothing")


def test_what_is_known_of_an_object() -> None:
    annotation = Annotation.from_ids(np.array([[0, 2, 255]], np.uint8))
    assert annotation.void is not None
    assert annotation.void.tolist() == [[False, False, True]]
    assert annotation.mask(2).tolist() == [[False, True, False]]
    assert not annotation.mask(1).any()
    assert Annotation((1, 3), {}, complete=False).mask(1) is None
    assert list(Annotation.from_ids(np.array([[255]]), void=None).masks) == [255]


def test_a_map_of_ids_of_what_overlaps() -> None:
    both = Annotation((1, 3), {2: np.array([[True, True, False]]), 1: np.array([[False, True, False]])})
    assert both.ids().tolist() == [[2, 1, 0]]
    with pytest.raises(DataError, match="object 0"):
        Annotation((1, 1), {0: np.ones((1, 1), bool)}).ids()
    with pytest.raises(DataError, match=r"must be integers \[height, width\]"):
        Annotation.from_ids(np.zeros((2, 2, 3), np.uint8))


def test_sequences_of_a_list(davis: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("test-00002\n\ntest-00001\n")
    assert open_dataset(davis, split="all", sequences=tmp_path / "mine.txt").names == ("test-00002", "test-00001")
    (tmp_path / "mine.txt").write_text("\n")
    with pytest.raises(DataError, match=r"mine\.txt lists no sequences"):
        open_dataset(davis, split="all", sequences=tmp_path / "mine.txt")


def test_numbered_videos_below_a_resolution_are_no_objects(tmp_path: Path) -> None:
    sequence = generate_sequence("test", 0, num_frames=1, size=(48, 64))
    write_sequence(replace(sequence, name="480p/00001"), tmp_path)
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.names) == ("davis", ("00001",))
