"""Pictures in every layout, and what is said of damaged ones."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_layouts import (
    SIZE,
    coco_record,
    overlapping,
    save,
    save_json,
    video,
    write_coco,
    write_panoptic,
    write_sa1b,
)
from numpy.typing import NDArray

from qsam2_ao.data.annotation import Annotation
from qsam2_ao.data.datasets import open_dataset
from qsam2_ao.errors import DataError


def read(path: Path, *, number: int = 0, **how: str) -> Annotation:
    found = open_dataset(path, **how)[number].annotation(0)
    assert found is not None
    return found


def test_sa1b(tmp_path: Path) -> None:
    for number in (11, 2):
        write_sa1b(tmp_path, number, video(number))
    dataset = pickle.loads(pickle.dumps(open_dataset(tmp_path)))
    assert (dataset.format, dataset.names) == ("sa-1b", ("sa_000000/sa_2", "sa_000000/sa_11"))
    found = dataset[0]
    assert (len(found), found.annotated, found.overlapping) == (1, (0,), True)
    annotation = found.annotation(0)
    for i, mask in overlapping(video(2), 0).items():
        assert np.array_equal(annotation.masks[900 + i], mask)
    assert found.object_ids == tuple(annotation.masks)
    assert np.abs(found.frames[0].astype(int) - video(2).frames[0]).mean() < 8
    assert open_dataset(tmp_path / "sa_000000").names == ("sa_2", "sa_11")


def test_sa1b_that_is_damaged(tmp_path: Path) -> None:
    path = write_sa1b(tmp_path, 1, video())
    record = json.loads(path.read_text())
    record["annotations"][1]["segmentation"]["size"] = [8, 8]
    save_json(path, record)
    with pytest.raises(DataError, match=r"sa_1\.json, annotation 2: its mask is \[8, 8\], and the picture \[48, 64\]"):
        read(tmp_path)
    record["annotations"][1] = record["annotations"][0]
    save_json(path, record)
    with pytest.raises(DataError, match=r"annotation 2: its id is 900, which is negative or another's too"):
        read(tmp_path)
    path.write_text("{]")
    with pytest.raises(DataError, match=r"sa_1\.json cannot be read as JSON"):
        read(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"sa_1\.jpg has no sa_1\.json beside it"):
        open_dataset(tmp_path, "sa-1b")


def test_coco_instances(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    path = write_coco(tmp_path, [video(0), video(1)])
    dataset = pickle.loads(pickle.dumps(open_dataset(tmp_path, split="val2017")))
    assert (dataset.format, dataset.names) == ("coco", ("test-00000", "test-00001"))
    annotation = dataset[1].annotation(0)
    assert list(annotation.masks) == [20 + i for i in video(1).object_ids]
    for i in video(1).object_ids:
        assert np.array_equal(annotation.masks[20 + i], video(1).masks[0] == i)
    crowd = np.zeros(SIZE, bool)
    crowd[:5, 0] = True
    assert np.array_equal(annotation.void, crowd & (video(1).masks[0] == 0))
    assert open_dataset(path).names == dataset.names


def test_coco_beside_its_pictures_as_labelling_services_export_it(tmp_path: Path) -> None:
    sequence = video()
    save(tmp_path / f"valid/{sequence.name}.jpg", sequence.frames[0])
    save_json(tmp_path / "valid/_annotations.coco.json", coco_record([sequence]))
    assert np.array_equal(read(tmp_path, split="val").masks[11], sequence.masks[0] == 1)


def test_polygons_of_pairs_are_those_of_numbers_in_a_row(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [video()])
    found = []
    for polygon in ([4, 4, 30, 4, 30, 20], [[4, 4], [30, 4], [30, 20]]):
        record = json.loads(path.read_text())
        record["annotations"][0] |= {"segmentation": [polygon]}
        path.write_text(json.dumps(record))
        found.append(read(tmp_path, split="val2017"))
    assert found[0].masks.keys() == found[1].masks.keys()
    assert all(np.array_equal(mask, found[1].masks[key]) for key, mask in found[0].masks.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "a polygon has 2 corners"),
        ({"segmentation": [[0, 0, 1e9, 0, 1, 1]]}, "far outside of 64 x 48"),
        ({"segmentation": [["a"]]}, "neither polygons nor run lengths"),
        ({"segmentation": []}, "its segmentation is empty"),
        ({"segmentation": None}, "a box without a segmentation"),
        ({"segmentation": {"size": [2, 2], "counts": [4]}}, r"its mask is \[2, 2\], the picture \[48, 64\]"),
        ({"segmentation": {"size": [True, 1], "counts": [1]}}, "has size"),
        ({"id": 12}, "annotation's id 12 is negative or another's too"),
        ({"image_id": 7}, "annotation 1 is of image 7, which is not listed"),
        ({"image_id": "a"}, "annotation 1: the field 'image_id' is not a whole number"),
    ],
)
def test_damaged_annotations_of_coco_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write_coco(tmp_path, [video()])
    record = json.loads(path.read_text())
    record["annotations"][0] |= change
    save_json(path, record)

    def read_all() -> None:
        found = read(path)
        assert [found.masks[i] for i in found.masks]

    with pytest.raises(DataError, match=rf"instances_val2017\.json.*{message}"):
        read_all()


def test_pictures_that_coco_lists_and_are_missing(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [video(0), video(1)])
    (tmp_path / "val2017/test-00001.jpg").unlink()
    with pytest.raises(DataError, match=r"test-00001\.jpg: no such file, and .*instances_val2017\.json lists it"):
        open_dataset(path)
    (tmp_path / "val2017/test-00000.jpg").unlink()
    with pytest.raises(DataError, match=r"lists the picture test-00000\.jpg, which is in none of .*val2017"):
        open_dataset(path)
    record = coco_record([video(0)])
    record["images"][0]["file_name"] = "x" * 300 + ".jpg"  # longer than a file system has names
    save_json(path, record)
    with pytest.raises(DataError, match=r"lists the picture x+\.jpg, which is in none of"):
        open_dataset(path)
    save_json(path, {**coco_record([video(0), video(0)])})
    with pytest.raises(DataError, match=r"image 2: another has its name test-00000"):
        open_dataset(path)


def test_sizes_that_would_take_memory_without_end(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [video()])
    record = json.loads(path.read_text())
    record["images"][0]["height"] = 10**9
    save_json(path, record)
    with pytest.raises(DataError, match=r"test-00000: a mask of 64 x 1000000000 pixels cannot be"):
        read(path)
    path = write_sa1b(tmp_path / "sa", 1, video())
    record = json.loads(path.read_text())
    record["annotations"][0]["segmentation"] = {"size": [10**9, 10**9], "counts": [10**18]}
    save_json(path, record)
    with pytest.raises(DataError, match=r"annotation 1: a mask of 1000000000 x 1000000000 pixels cannot be"):
        read(tmp_path / "sa")


def test_panoptic_segments(tmp_path: Path) -> None:
    sequence = video()
    path = write_panoptic(tmp_path, sequence)
    found = read(tmp_path, split="val2017")
    assert list(found.masks) == [70001 * i for i in sequence.object_ids[1:]]
    assert np.array_equal(found.masks[140002], sequence.masks[0] == 2)
    assert np.array_equal(found.void, sequence.masks[0] < 2)  # the first is a crowd
    record = json.loads(path.read_text())
    segments = record["annotations"][0]["segments_info"]
    segments[0]["id"] += 1
    save_json(path, record)
    with pytest.raises(DataError, match=r"test-00000\.png has the segment 70001, which .*panoptic_val2017\.json"):
        read(path)
    segments[0]["id"] -= 1
    segments.append({"id": 5})
    save_json(path, record)
    with pytest.raises(DataError, match=r"lists the segment 5, which .*test-00000\.png has not"):
        read(path)
    (tmp_path / "annotations/panoptic_val2017/test-00000.png").unlink()
    with pytest.raises(DataError, match=r"panoptic_val2017/test-00000\.png: no such file"):
        open_dataset(path)


def ade_challenge(root: Path) -> NDArray[np.uint8]:
    classes = np.where(video().masks[0] > 0, video().masks[0] + 147, 0).astype(np.uint8)
    save(root / "images/validation/ADE_val_00000001.jpg", video().frames[0])
    save(root / "annotations/validation/ADE_val_00000001.png", classes)
    return classes


def test_ade20k(tmp_path: Path) -> None:
    classes = ade_challenge(tmp_path / "challenge")
    found = read(tmp_path / "challenge", split="val")
    assert open_dataset(tmp_path / "challenge", split="val").format == "ade20k"
    assert list(found.masks) == [int(i) for i in np.unique(classes) if i]
    assert np.array_equal(found.masks[149], classes == 149)
    assert np.array_equal(found.void, classes == 0)
    for images in (tmp_path / "challenge/images").iterdir():
        (images / ".DS_Store").touch()
    assert open_dataset(tmp_path / "challenge", split="val").format == "ade20k"
    # The full set spreads its instances over the values of blue.
    folder = tmp_path / "full/images/ADE/training/urban/street"
    blue = video().masks[0] * 40
    save(folder / "ADE_train_00000007.jpg", video().frames[0])
    save(folder / "ADE_train_00000007_seg.png", np.stack([blue // 4, blue, blue], -1))
    found = read(tmp_path / "full", split="train")
    for i in video().object_ids:
        assert np.array_equal(found.masks[i], video().masks[0] == i)


def write_yolo(root: Path, lines: list[str]) -> None:
    save(root / "images/a.jpg", video().frames[0])
    save(root / "images/b.jpg", video(1).frames[0])
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text("\n".join(lines))


def test_yolo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_yolo(tmp_path, ["3 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75", "", "1 0 0 1 0 1 1 0 1"])
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(tmp_path)
    assert "1 of 2 pictures" in caplog.text
    assert "b.jpg" in caplog.text
    annotation = dataset[0].annotation(0)
    assert annotation is not None
    assert list(annotation.masks) == [1, 3]  # the numbers of the lines
    square = np.zeros(SIZE, bool)
    square[12:37, 16:49] = True
    assert np.array_equal(annotation.masks[1], square)
    assert annotation.masks[3].all()
    assert dataset[1].object_ids == ()


def test_the_classes_names_are_no_labels(tmp_path: Path) -> None:
    write_yolo(tmp_path / "flat", ["1 0 0 1 0 1 1 0 1"])
    for split in ("train", "val"):
        write_yolo(tmp_path / "both" / split, ["1 0 0 1 0 1 1 0 1"])
        (tmp_path / "both" / split / "labels/classes.txt").write_text("cat")
    (tmp_path / "flat/labels/classes.txt").write_text("cat")
    assert len(open_dataset(tmp_path / "both", split="all")) == 2 * len(open_dataset(tmp_path / "flat")) == 4
    # Beside masks they alone do not say that there are labels.
    (tmp_path / "flat/labels/a.txt").unlink()
    for name in "ab":
        save(tmp_path / f"flat/labels/{name}.png", video().masks[0])
    dataset = open_dataset(tmp_path / "flat")
    assert dataset.format == "images-and-masks"
    assert dataset[0].object_ids == video().object_ids


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0.5 0.5 0.1 0.1", "line 1 is a box"),
        ("1 0.5 0.5 0.1", "line 1 is not a class and pairs"),
        ("1 a b c d e f", "line 1 is not a class and pairs"),
        ("1 10 10 20 10 20 20", "line 1 is no polygon"),
        ("1 nan 0 1 0 1 1", "line 1 is no polygon"),
    ],
)
def test_damaged_labels_of_yolo_are_named(tmp_path: Path, line: str, message: str) -> None:
    write_yolo(tmp_path, [line])
    with pytest.raises(DataError, match=rf"a\.txt, {message}"):
        read(tmp_path)


def test_labels_without_a_picture_are_named(tmp_path: Path) -> None:
    write_yolo(tmp_path, [])
    (tmp_path / "labels/c.txt").touch()
    with pytest.raises(DataError, match=r"labels/c\.txt has no picture of its name"):
        open_dataset(tmp_path)


Place = Callable[[Path, str], Path]


@pytest.mark.parametrize(
    ("picture", "mask", "split"),
    [
        ("images/a.jpg", "masks/a.png", None),
        ("images/train/a.jpg", "masks/train/a.png", "train"),
        ("train/imgs/a.jpg", "train/labels/a.png", "training"),
        ("photos/deep/a.jpg", "annotations/deep/a.png", "all"),
        ("a.jpg", "a_mask.png", None),
    ],
)
def test_folders_of_pictures_and_masks(tmp_path: Path, picture: str, mask: str, split: str | None) -> None:
    save(tmp_path / picture, video().frames[0])
    save(tmp_path / mask, video().masks[0])
    dataset = open_dataset(tmp_path, split=split)
    assert dataset.format == "images-and-masks"
    annotation = dataset[0].annotation(0)
    assert annotation is not None
    assert np.array_equal(annotation.ids(), video().masks[0])
    assert dataset[0].frames[0].shape == (*SIZE, 3)


def test_values_of_masks(tmp_path: Path) -> None:
    few = np.zeros(SIZE, np.int32)
    few[:10], few[20:30] = 3, 255
    for name, ids in (("few", few), ("many", few * 2)):
        save(tmp_path / f"images/{name}.jpg", video().frames[0])
        save(tmp_path / f"masks/{name}.png", ids.astype(np.uint16))
    assert list(read(tmp_path).masks) == [3]
    assert list(read(tmp_path, number=1).masks) == [6, 510]


def test_pictures_and_masks_that_lack_one_another(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"images/{name}.jpg", video().frames[0])
    save(tmp_path / "masks/a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"images/b\.jpg has no mask of its name, and 1 others have none"):
        open_dataset(tmp_path)
    for name in "bc":
        (tmp_path / f"images/{name}.jpg").unlink()
    with pytest.raises(DataError, match=r"masks/a\.png is 4 x 4 pixels, but the first frame of a is 64 x 48"):
        read(tmp_path)
    save(tmp_path / "images/a.bmp", video().frames[0])
    with pytest.raises(DataError, match=r"have one name with two endings"):
        open_dataset(tmp_path)


def test_pictures_alone(tmp_path: Path) -> None:
    save(tmp_path / "holiday/a.jpg", video().frames[0])
    dataset = open_dataset(tmp_path)
    assert (dataset.format, dataset.names, dataset.has_masks) == ("images", ("holiday/a.jpg",), False)
    assert dataset[0].annotation(0) is None
    assert dataset[0].object_ids == ()
    with pytest.raises(DataError, match="has pictures, but no masks that are known here"):
        dataset.labelled()
