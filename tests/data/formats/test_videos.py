"""Videos in every layout, and what is said of damaged ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_layouts import (
    masklet_record,
    overlapping,
    save,
    save_json,
    video,
    write_maps,
    write_sav,
    write_sav_train,
)

from qsam2_ao.data.datasets import open_dataset
from qsam2_ao.data.formats.base import Video
from qsam2_ao.data.procedural import Sequence
from qsam2_ao.data.video import write_video
from qsam2_ao.errors import DataError


def same_masks(found: Video, sequence: Sequence, t: int) -> bool:
    annotation = found.annotation(t)
    assert annotation is not None
    return np.array_equal(annotation.ids(), sequence.masks[t])


def test_mose_has_all_masks_in_train_and_the_first_in_valid(tmp_path: Path) -> None:
    write_maps(tmp_path / "train", "aa", video())
    write_maps(tmp_path / "valid", "bb", video(1), masks=[0])
    train = open_dataset(tmp_path, split="train")
    assert (train.format, train.names, train[0].annotated) == ("mose", ("aa",), (0, 1, 2))
    assert same_masks(train[0], video(), 2)
    valid = open_dataset(tmp_path, default_split="val")[0]
    assert (valid.annotated, valid.requested, len(valid)) == ((0,), None, 3)
    with pytest.raises(DataError, match="has a folder for each split: choose one of train, valid"):
        open_dataset(tmp_path, split="all")
    assert open_dataset(tmp_path / "train").format == "davis"  # without its splits it is laid out the same


def youtube_vos(root: Path) -> Path:
    """Train with all masks; valid whose object 2 begins on its third frame, and every frame of valid."""
    sequence = video(frames=3)
    write_maps(root / "train", "aa", sequence, step=5)
    write_maps(root / "valid", "bb", sequence, step=5, masks=[])
    for t, i in ((0, 1), (2, 2)):
        save(root / f"valid/Annotations/bb/{5 * t:05d}.png", np.where(sequence.masks[t] == i, i, 0).astype(np.uint8))
    every = video(frames=11)
    for t in range(11):
        save(root / f"valid_all_frames/JPEGImages/bb/{t:05d}.jpg", every.frames[t])
    names = ["00000", "00005", "00010"]
    objects = {str(i): {"category": "cat", "frames": names} for i in sequence.object_ids}
    save_json(root / "train/meta.json", {"videos": {"aa": {"objects": objects}}})
    begin = {"1": {"category": "cat", "frames": names}, "2": {"category": "dog", "frames": names[2:]}}
    save_json(root / "valid/meta.json", {"videos": {"bb": {"objects": begin}}})
    return root


def test_youtube_vos(tmp_path: Path) -> None:
    root = youtube_vos(tmp_path)
    train = open_dataset(root, split="train")[0]
    assert train.frame_names == ("00000", "00005", "00010")
    assert train.object_ids == video().object_ids
    assert same_masks(train, video(), 1)
    annotation = train.annotation(1)
    assert annotation is not None
    assert annotation.complete
    dataset = pickle.loads(pickle.dumps(open_dataset(root, split="val")))
    valid = dataset[0]
    assert (dataset.format, valid.annotated, valid.object_ids) == ("youtube-vos", (0, 2), (1, 2))
    later = valid.annotation(2)
    assert later is not None
    assert later.mask(1) is None  # object 1 is not away: the mask shows what begins
    assert later.masks[2].any()
    every = open_dataset(root, split="valid_all_frames")[0]
    assert (len(every), every.annotated, every.requested) == (11, (0, 10), (0, 5, 10))
    assert open_dataset(root / "valid").names == ("bb",)


def test_youtube_vos_with_a_damaged_list(tmp_path: Path) -> None:
    root = youtube_vos(tmp_path)
    meta = root / "valid/meta.json"
    whole = json.loads(meta.read_text())
    for change, message in (
        ("{", r"meta\.json cannot be read as JSON"),
        ("[]", r"meta\.json: the field 'videos' is not there"),
        ('{"videos": {}}', r"meta\.json, video bb: it is not there"),
        ('{"videos": {"bb": {"objects": {"300": {}}}}}', "an object is called '300', and ids are 1 to 254"),
        ('{"videos": {"bb": {"objects": {"1": {}}}}}', r"video bb, object 1: the field 'frames' is not there"),
    ):
        meta.write_text(change)
        with pytest.raises(DataError, match=message):
            open_dataset(root, split="valid")[0]
    del whole["videos"]["bb"]["objects"]["2"]
    meta.write_text(json.dumps(whole))
    with pytest.raises(DataError, match=r"00010\.png has the id 2, but the data set lists the objects 1 for"):
        open_dataset(root, split="valid")[0].annotation(2)
    whole["videos"]["bb"]["objects"]["1"]["frames"] = ["00007"]
    meta.write_text(json.dumps(whole))
    with pytest.raises(DataError, match="has no frame 00007, of which the data set's list wants a mask"):
        open_dataset(root, split="valid")[0]


def test_lvos(tmp_path: Path) -> None:
    write_maps(tmp_path / "val", "cc", video())
    entry = {"frame_range": {"start": "00000", "end": "00002", "frame_nums": 3}}
    record = {"videos": {"cc": {"objects": {str(i): entry for i in video().object_ids}}}}
    meta = save_json(tmp_path / "val/val_meta.json", record)
    save_json(tmp_path / "val/val_expression_meta.json", {})
    dataset = open_dataset(tmp_path, split="valid")
    assert (dataset.format, dataset[0].object_ids) == ("lvos", video().object_ids)
    assert same_masks(dataset[0], video(), 1)
    meta.unlink()
    with pytest.raises(DataError, match=r"val has 0 files called \*_meta\.json"):
        open_dataset(tmp_path, "lvos", split="val")


def test_sav_has_masks_that_overlap(tmp_path: Path) -> None:
    for number in range(2):
        write_sav(tmp_path / "sav_val", f"sav_00000{number}", video(number))
    (tmp_path / "sav_val/sav_val.txt").write_text("sav_000001\n")
    dataset = open_dataset(tmp_path, split="val")
    assert (dataset.format, dataset.names) == ("sav", ("sav_000001",))
    assert open_dataset(tmp_path / "sav_val").names == ("sav_000001",)
    found = dataset[0]
    assert found.overlapping
    assert (found.annotated, found.object_ids) == ((0, 2), (0, *video(1).object_ids))
    annotation = found.annotation(2)
    assert annotation is not None
    for i, mask in overlapping(video(1), 2).items():
        assert np.array_equal(annotation.masks[i], mask)
    (tmp_path / "sav_val/Annotations_6fps/sav_000001/000/00002.png").unlink()
    annotation = dataset[0].annotation(2)
    assert annotation is not None
    assert annotation.mask(0) is None


def test_sav_that_is_damaged(tmp_path: Path) -> None:
    write_sav(tmp_path, "sav_000001", video())
    masks = tmp_path / "Annotations_6fps/sav_000001"
    save(masks / "001/00002.png", np.zeros((8, 9), np.uint8))
    annotation = open_dataset(tmp_path)[0].annotation(2)
    assert annotation is not None
    with pytest.raises(DataError, match=r"001/00002\.png is 9 x 8 pixels, but .* is 64 x 48"):
        annotation.masks[1]
    save(masks / "001/00002.png", video().masks[0])
    annotation = open_dataset(tmp_path)[0].annotation(2)
    assert annotation is not None
    with pytest.raises(DataError, match=r"001/00002\.png has the values 1, 2.*, but a file .* has one"):
        annotation.masks[1]
    save(masks / "001/00009.png", video().masks[0])
    with pytest.raises(DataError, match=r"00009\.png has no frame of that name"):
        open_dataset(tmp_path)[0]
    (masks / "hand").mkdir()
    (masks / "001/00009.png").unlink()
    with pytest.raises(DataError, match="hand should be called by its object's number"):
        open_dataset(tmp_path)[0]


def test_sav_train_of_a_video_and_of_extracted_frames(tmp_path: Path) -> None:
    sequence = video(frames=9)
    write_sav_train(tmp_path, "sav_000001", sequence)
    dataset = open_dataset(tmp_path)
    found = pickle.loads(pickle.dumps(dataset))[0]
    assert (dataset.format, len(found), found.annotated) == ("sav-train", 9, (0, 4, 8))
    for t in (8, 0, 4, 5, 5, 8):  # back, onwards, and again
        assert np.abs(found.frames[t].astype(int) - sequence.frames[t]).mean() < 12  # H.264
    annotation = found.annotation(4)
    assert annotation is not None
    for i, mask in overlapping(sequence, 4).items():
        assert np.array_equal(annotation.masks[i], mask)
    (tmp_path / "sav_000/sav_000001.mp4").unlink()
    for t in (0, 4, 8):
        save(tmp_path / f"sav_000/sav_000001/{t:05d}.jpg", sequence.frames[t])
    extracted = open_dataset(tmp_path)[0]
    assert (extracted.frame_names, extracted.annotated) == (("00000", "00004", "00008"), (0, 1, 2))


def test_sav_train_tells_unknown_from_away(tmp_path: Path) -> None:
    sequence = video(frames=9)
    path = write_sav_train(tmp_path, "sav_000001", sequence)
    record = masklet_record(sequence)
    rows = record["masklet"]
    assert isinstance(rows, list)
    rows[1][1] = None
    rows[2] = [None] * len(rows[2])
    save_json(path, {**record, "fps": 6})
    found = open_dataset(tmp_path)[0]
    assert found.annotated == (0, 4)
    annotation = found.annotation(4)
    assert annotation is not None
    assert annotation.mask(1) is None


def test_a_video_that_ends_early_is_named(tmp_path: Path) -> None:
    path = write_sav_train(tmp_path, "sav_000001", video(frames=9))
    write_video(path.with_name("sav_000001.mp4"), video(frames=6).frames, fps=24)
    with pytest.raises(DataError, match=r"sav_000001\.mp4 has no frame 8, of which sav_000001_manual\.json has masks"):
        open_dataset(tmp_path)[0]
    path.with_name("sav_000001.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match=r"sav_000001\.mp4 cannot be read as a video"):
        open_dataset(tmp_path)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masklet": None}, "the field 'masklet' is not there"),
        ({"masklet": [[]]}, "every frame must list the same objects"),
        ({"masklet": [[1], [1, 2]]}, "every frame must list the same objects"),
        ({"masklet_id": [0]}, r"masklet_id is \[0\], and must number the \d objects"),
        ({"fps": 5}, "said to come 5 times a second"),
    ],
)
def test_damaged_masklets_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write_sav_train(tmp_path, "sav_000001", video(frames=2))
    save_json(path, {**masklet_record(video(frames=2)), **change})
    with pytest.raises(DataError, match=rf"sav_000001_manual\.json.*{message}"):
        open_dataset(tmp_path)[0]


def test_masklets_of_another_size_or_with_broken_runs(tmp_path: Path) -> None:
    path = write_sav_train(tmp_path, "sav_000001", video(frames=2))
    save_json(path, {"masklet": [[{"size": [4, 5], "counts": "P"}]]})
    with pytest.raises(DataError, match=r"manual\.json, frame 0 is 5 x 4 pixels, but the first frame .* is 64 x 48"):
        open_dataset(tmp_path)[0].annotation(0)
    save_json(path, {"masklet": [[{"size": [48, 64], "counts": "P"}]]})
    annotation = open_dataset(tmp_path)[0].annotation(0)
    assert annotation is not None
    with pytest.raises(DataError, match=r"manual\.json, frame 0, object 0: .* ends within a number"):
        annotation.masks[0]


def test_videos_and_masks_that_lack_one_another(tmp_path: Path) -> None:
    path = write_sav_train(tmp_path, "sav_000001", video(frames=2))
    for name in ("sav_000002", "sav_000003"):
        path.with_name(f"{name}.mp4").touch()
    with pytest.raises(DataError, match=r"sav_000002\.mp4 has no sav_000002_manual\.json .*nor have 1 others"):
        open_dataset(tmp_path)
    for name in ("sav_000001", "sav_000002", "sav_000003"):
        path.with_name(f"{name}.mp4").unlink()
    with pytest.raises(DataError, match=r"sav_000001_manual\.json has no sav_000001\.mp4"):
        open_dataset(tmp_path)
