from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_layouts import overlapping, save, video, write_maps, write_sa1b, write_sav_train

from qsam2_ao.data.clips import DatasetClips
from qsam2_ao.data.mixture import Mixture, Source, parse_sources
from qsam2_ao.errors import DataError


def test_names_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_sources("A") == (Source("A"),)
    assert parse_sources("A, B") == (Source("A"), Source("B"))
    assert parse_sources("A:0.7,coco=B/c.json@train2017:3e-1") == (
        Source("A", 0.7),
        Source("B/c.json", 0.3, "coco", "train2017"),
    )
    assert parse_sources("mine=A@val") == (Source("mine=A", split="val"),)
    for name in ("a:1,b@c", "x:2", "y@z"):
        Path(name).mkdir()
    assert parse_sources("a:1,b@c") == (Source("a:1,b@c"),)
    assert parse_sources("x:2:5,y@z:1") == (Source("x:2", 5), Source("y@z", 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A:0.7,B", "some of its data sets have a weight"),
        ("A:-1,B:1", "'-1' is no positive number"),
        ("A:much", "'much' is no positive number"),
        ("A:nan", "'nan' is no positive number"),
        ("A,", "'' names no data set"),
        ("@train", "'@train' names no data set"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_sources(text)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for index in range(12):
        write_maps(tmp_path / "videos", f"{index:02d}", video(index, frames=2))
    write_sa1b(tmp_path / "pictures", 1, video(20))
    return tmp_path


def test_data_sets_are_drawn_from_by_weight(folders: Path) -> None:
    mixture = Mixture.open(f"{folders / 'videos'}:3,{folders / 'pictures'}:1")
    rng = np.random.default_rng(0)
    names = Counter(mixture.pick(rng).name for _ in range(400))
    assert abs(names["sa_000000/sa_1"] - 100) < 30
    assert set(names) == {"sa_000000/sa_1", *(f"{index:02d}" for index in range(12))}


def test_some_videos_are_held_out(folders: Path) -> None:
    trained, held = Mixture.open(f"{folders / 'videos'}:3,{folders / 'pictures'}:1").hold_out()
    assert held.datasets[0].names == ("04",)
    assert trained.datasets[0].names == tuple(f"{index:02d}" for index in range(12) if index != 4)
    assert trained.datasets[1].names == held.datasets[1].names == ("sa_000000/sa_1",)
    assert trained.weights == held.weights == (3, 1)


def test_pictures_without_masks_cannot_be_trained_on(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", video().frames[0])
    with pytest.raises(DataError, match="has pictures, but no masks"):
        Mixture.open(str(tmp_path))


def test_clips_of_videos(folders: Path) -> None:
    clips = pickle.loads(pickle.dumps(DatasetClips(Mixture.open(str(folders / "videos")), 32)))
    clip = clips.draw(3, np.random.default_rng(5))
    again = clips.draw(3, np.random.default_rng(5))
    assert (clip.frames.shape, clip.masks.shape) == ((3, 32, 32, 3), (3, 32, 32))
    assert np.array_equal(clip.frames, again.frames)
    assert np.array_equal(clip.masks, again.masks)
    assert np.array_equal(clip.frames[0], clip.frames[2])  # two frames, back and forth
    assert not np.array_equal(clip.frames[0], clip.frames[1])
    original = video(int(clip.name), frames=2)
    assert len(clip.object_ids) == len(original.object_ids)
    for i in clip.object_ids:
        rows, columns = np.nonzero(clip.masks[0] == i)
        # Rows are those of the original times 2 / 3, columns times 1 / 2: nearest neighbours.
        assert len(np.unique(original.masks[0][(rows * 1.5 + 0.75).astype(int), columns * 2 + 1])) == 1


def test_objects_that_begin_later_are_there_for_frames_that_stand_alone(tmp_path: Path) -> None:
    for t in range(2):
        ids = np.zeros((48, 64), np.uint8)
        ids[:20, :30] = 1
        ids[30:, 40:] = 7 * t
        save(tmp_path / f"JPEGImages/a/{t}.jpg", video().frames[t])
        save(tmp_path / f"Annotations/a/{t}.png", ids)
    clip = DatasetClips(Mixture.open(str(tmp_path)), 48).draw(2, np.random.default_rng(1))
    assert clip.object_ids == (1,)
    assert np.unique(clip.masks[1]).tolist() == [0, 1, 2]


def test_objects_that_overlap_take_turns(tmp_path: Path) -> None:
    sequence = video(frames=5)
    write_sav_train(tmp_path, "sav_000001", sequence)
    clips = DatasetClips(Mixture.open(str(tmp_path)), 64)
    seen = Counter(len(clips.draw(2, np.random.default_rng(seed)).object_ids) for seed in range(20))
    # Either the mask of all together, or those of each.
    assert set(seen) == {1, len(overlapping(sequence, 0)) - 1}


def test_a_view_moves_over_a_picture(tmp_path: Path) -> None:
    write_sa1b(tmp_path, 1, video(20))
    clip = DatasetClips(Mixture.open(str(tmp_path)), 48).draw(3, np.random.default_rng(1))
    assert not np.array_equal(clip.frames[0], clip.frames[1])
    assert (np.abs(np.diff(clip.masks.astype(bool).mean((1, 2)))) < 0.2).all()
    assert clip.object_ids


def test_void_is_background(tmp_path: Path) -> None:
    masks = np.zeros((48, 64), np.uint8)
    masks[:10], masks[20:40] = 255, 1
    for t in range(2):
        save(tmp_path / f"JPEGImages/a/{t}.jpg", video().frames[0])
        save(tmp_path / f"Annotations/a/{t}.png", masks)
    clip = DatasetClips(Mixture.open(str(tmp_path)), 48).draw(2, np.random.default_rng(1))
    assert np.unique(clip.masks).tolist() == [0, 1]
    assert not clip.masks[:, :10].any()
