"""Files of masks as pycocotools reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from qsam2_ao.data.coco import CocoFile, mask_shape
from qsam2_ao.errors import DataError, QSAM2Error

IDS = np.zeros((12, 16), np.uint8)
IDS[2:9, 3:12], IDS[4:6, 5:7], IDS[10:, :4] = 1, 0, 7


@pytest.mark.parametrize("form", ["rle", "polygons"])
def test_pycocotools_reads_the_masks_back(tmp_path: Path, form: Literal["rle", "polygons"]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    with CocoFile(tmp_path / "new" / "masks.json", form) as file:
        file.add("a.jpg", IDS, {1: 0.5})
        file.add("b.jpg", {1: IDS == 1, 7: np.zeros((12, 16), bool)})
        file.add("c.jpg", np.zeros((12, 16), np.uint8))
    read = coco.COCO(tmp_path / "new" / "masks.json")
    assert [(image["file_name"], image["width"], image["height"]) for image in read.loadImgs([1, 2, 3])] == [
        (name, 16, 12) for name in ("a.jpg", "b.jpg", "c.jpg")
    ]
    found = read.loadAnns(read.getAnnIds())
    assert [(a["image_id"], a["object_id"], a.get("score")) for a in found] == [(1, 1, 0.5), (1, 7, None), (2, 1, None)]
    for annotation in found:
        mask = annotation["object_id"] == IDS
        assert np.array_equal(read.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
    assert found[0]["bbox"] == [3, 2, 9, 7]


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be bool"), CocoFile(tmp_path / "masks.json", "rle") as file:
        file.add("a.jpg", {1: IDS})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []
    with CocoFile(tmp_path / "masks.json", "rle"):
        pass
    assert json.loads((tmp_path / "masks.json").read_text())["images"] == []


def test_wrong_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not 'png'"):
        CocoFile(tmp_path / "x", "png")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="with statement"):
        CocoFile(tmp_path / "x", "rle").add("a.jpg", IDS)
    with pytest.raises(DataError, match="no mask"), CocoFile(tmp_path / "x", "rle") as file:
        file.add("a.jpg", {})
    with pytest.raises(DataError, match="empty mask"):
        mask_shape(np.zeros((2, 2), bool), "rle")
    (tmp_path / "file").touch()
    with pytest.raises(QSAM2Error, match="cannot write"), CocoFile(tmp_path / "file" / "x", "rle"):
        pass
