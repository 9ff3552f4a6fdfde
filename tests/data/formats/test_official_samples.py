"""Files of the data sets themselves, where the samples are there: ``../shared/realdata`` beside the repository."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsam2_ao.data.datasets import open_dataset
from qsam2_ao.data.formats.base import Dataset

REAL = Path(__file__).parents[4] / "shared/realdata"
SAMPLES = REAL / "layout_samples"

pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"{SAMPLES} is not there")


def areas(dataset: Dataset, number: int = 0, t: int = 0) -> dict[int, int]:
    found = dataset[number].annotation(t)
    assert found is not None
    return {i: int(np.count_nonzero(mask)) for i, mask in found.masks.items()}


def test_masklets_of_sav(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    path = Path(shutil.copy(SAMPLES / "sav_sample/sav_000001_manual.json", tmp_path))
    record = json.loads(path.read_text())
    frames = tmp_path / "sav_000001"
    frames.mkdir()
    Image.new("RGB", (480, 848)).save(frames / "00000.jpg")
    for t in range(4, 484, 4):
        (frames / f"{t:05d}.jpg").hardlink_to(frames / "00000.jpg")
    dataset = open_dataset(tmp_path)
    video = dataset[0]
    assert (dataset.format, len(video.annotated), video.object_ids) == ("sav-train", 121, (0, 1, 2, 3, 4))
    for row in (0, 28, 120):
        assert areas(dataset, t=row) == {i: coco.area(rle) for i, rle in enumerate(record["masklet"][row])}
    first = video.annotation(30)
    assert first is not None
    assert np.array_equal(first.masks[1], coco.decode(record["masklet"][30][1]).astype(bool))


def test_panoptic_segments_and_instances_of_coco() -> None:
    folder = SAMPLES / "coco_panoptic_sample"
    panoptic = open_dataset(folder / "panoptic_examples.json")
    record = json.loads((folder / "panoptic_examples.json").read_text())
    for number, entry in enumerate(record["annotations"]):
        expected = {s["id"]: s["area"] for s in entry["segments_info"] if not s["iscrowd"]}
        assert areas(panoptic, number) == expected
    detection = json.loads((folder / "panoptic_coco_detection_format.json").read_text())
    instances = open_dataset(folder / "panoptic_coco_detection_format.json", "coco")
    found = areas(instances, 0) | areas(instances, 1)
    assert found == {a["id"]: a["area"] for a in detection["annotations"] if not a["iscrowd"]}


def test_ade20k(tmp_path: Path) -> None:
    challenge = open_dataset(SAMPLES / "ade20k_sample")
    assert challenge.format == "ade20k"
    for number, name in enumerate(challenge.names):
        classes = np.asarray(Image.open(SAMPLES / f"ade20k_sample/annotations/{name}.png"))
        ids, counts = np.unique(classes[classes > 0], return_counts=True)
        assert areas(challenge, number) == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    raw = SAMPLES / "ade20k_raw_example/ADE_train_00000970_raw.png"
    shutil.copy(raw, tmp_path / "ADE_train_00000970_seg.png")
    Image.new("RGB", (1024, 768)).save(tmp_path / "ADE_train_00000970.jpg")
    blue = np.asarray(Image.open(raw))[..., 2]
    assert list(areas(open_dataset(tmp_path)).values()) == [int((blue == v).sum()) for v in np.unique(blue)[1:]]


def test_polygons_of_yolo(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(REAL / "validation/coco128", "yolo")
    assert "2 of 128 pictures" in caplog.text
    assert sum(len(video.object_ids) for video in dataset) == 929


def test_davis() -> None:
    dataset = open_dataset(REAL / "test/davis2016_val")
    assert (len(dataset), dataset[0].name, dataset[0].object_ids) == (12, "blackswan", (1,))
    caps = open_dataset(REAL / "validation/pumavos", sequences=["caps"])[0]
    assert (len(caps), caps.annotated, caps.object_ids) == (87, (0, 14, 33, 43, 66), (1, 2))
