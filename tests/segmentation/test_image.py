"""Objects in an image, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sam2.sam2_image_predictor import SAM2ImagePredictor

from qsam2_ao import build_embedded, prepare_qsam2
from qsam2_ao.data.pictures import read_ids
from qsam2_ao.data.procedural import Sequence
from qsam2_ao.errors import DataError
from qsam2_ao.segmentation import ObjectPrompt, segment_file, segment_image

PROMPTS = {1: ObjectPrompt(box=(10, 20, 60, 80)), 4: ObjectPrompt([(30.0, 30.0, 1)])}


def test_logits_are_the_predictors(predictor: Any, sequence: Sequence) -> None:
    picture = Image.fromarray(sequence.frames[0])
    logits, scores = segment_image(predictor, picture, PROMPTS)
    sam = SAM2ImagePredictor(predictor)
    sam.set_image(picture)
    by_box, quality, _ = sam.predict(box=np.array([10, 20, 60, 80.0]), multimask_output=False, return_logits=True)
    np.testing.assert_array_equal(logits[1], by_box[0])
    assert scores[1] == float(quality[0])
    by_click, qualities, _ = sam.predict(np.array([[30.0, 30.0]]), np.array([1]), return_logits=True)
    np.testing.assert_array_equal(logits[4], by_click[qualities.argmax()])


def test_files(predictor: Any, sequence: Sequence, tmp_path: Path) -> None:
    Image.fromarray(sequence.frames[0]).save(tmp_path / "picture.png")
    done = segment_file(predictor, tmp_path / "picture.png", PROMPTS, tmp_path / "out")
    ids = read_ids(done.mask)
    assert [found.id for found in done.objects] == [1, 4]
    assert [found.pixels for found in done.objects] == [(ids == 1).sum(), (ids == 4).sum()]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["picture_mask.png", "picture_overlay.png"]


def test_every_form_holds_the_same_masks(predictor: Any, sequence: Sequence, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    Image.fromarray(sequence.frames[0]).save(tmp_path / "picture.png")
    done = segment_file(predictor, tmp_path / "picture.png", PROMPTS, tmp_path, save=["masks", "rle", "polygons"])
    assert done.overlay is None
    assert done.mask is not None
    ids = read_ids(done.mask)
    for path in (done.rle, done.polygons):
        read = coco.COCO(path)
        assert read.imgs[1]["file_name"] == "picture.png"
        found = {annotation["object_id"]: annotation for annotation in read.anns.values()}
        assert found.keys() == {found.id for found in done.objects if found.pixels}
        for number, annotation in found.items():
            assert np.array_equal(read.annToMask(annotation), ids == number)
            assert annotation["score"] == done.objects[[1, 4].index(number)].score
    segment_file(predictor, tmp_path / "picture.png", PROMPTS, tmp_path / "alone", save=["rle"])
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["picture_rle.json"]
    for wrong in ([], ["png"]):
        with pytest.raises(DataError, match="save must name some of masks, overlay, rle, polygons"):
            segment_file(predictor, tmp_path / "picture.png", PROMPTS, tmp_path, save=wrong)  # type: ignore[arg-type]


def test_a_mask_is_sam2s_low_resolution_input_with_the_box_around_it(predictor: Any, sequence: Sequence) -> None:
    picture, mask = Image.fromarray(sequence.frames[0]), np.zeros((96, 96), bool)
    mask[16:64, 32:80] = True  # whole blocks of 4 x 4 pixels, but for the smoothing at edges
    logits, scores = segment_image(predictor, picture, {1: ObjectPrompt(mask=mask)})
    sam = SAM2ImagePredictor(predictor)
    sam.set_image(picture)
    small = F.interpolate(
        torch.where(torch.from_numpy(mask), 10.0, -10.0)[None, None], (24, 24), mode="bilinear", antialias=True
    )
    arguments: Any = {"box": np.array([32, 16, 80, 64]), "multimask_output": False, "return_logits": True}
    expected, quality, _ = sam.predict(mask_input=small[0].numpy(), **arguments)
    np.testing.assert_array_equal(logits[1], expected[0])
    assert scores[1] == float(quality[0])
    without, _, _ = sam.predict(**arguments)
    assert (without != expected).any()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (ObjectPrompt(), "object 2: there is no prompt"),
        (ObjectPrompt([(200.0, 3.0, 1)]), r"object 2: points has \(200, 3\), outside of the picture"),
        (ObjectPrompt(mask=np.ones((3, 3), bool)), r"object 2: mask has shape \[3, 3\]"),
        (ObjectPrompt(mask=np.zeros((96, 96), bool)), r"object 2: its mask is empty"),
        (ObjectPrompt([(2.0, 3.0, 1)], mask=np.ones((96, 96), bool)), "object 2 has a mask and another prompt"),
    ],
)
def test_prompts_that_break_the_rules(predictor: Any, sequence: Sequence, prompt: ObjectPrompt, message: str) -> None:
    with pytest.raises(DataError, match=message):
        segment_image(predictor, Image.fromarray(sequence.frames[0]), {2: prompt})


@pytest.mark.parametrize(
    ("prompts", "message"),
    [({}, "say what to look for"), ({300: PROMPTS[1]}, "300 is no object id"), ({0: PROMPTS[1]}, "0 is no object id")],
)
def test_no_objects_and_ids_that_no_mask_has(
    predictor: Any, picture: Path, tmp_path: Path, prompts: dict[int, ObjectPrompt], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        segment_file(predictor, picture, prompts, tmp_path / "out")


def test_prompts_may_be_arrays(predictor: Any, picture: Path, tmp_path: Path) -> None:
    given = {1: ObjectPrompt(box=np.array([10, 20, 60, 80])), 4: ObjectPrompt(np.array([[30.0, 30.0, 1]]))}  # type: ignore[arg-type]
    found = [segment_file(predictor, picture, prompts, tmp_path / "out").objects for prompts in (given, PROMPTS)]
    assert found[0] == found[1]


def test_a_model_in_training_is_left_as_it_is(sequence: Sequence) -> None:
    prepared: Any = prepare_qsam2(
        build_embedded(), {"mask_decoder": "w4a8"}, calibration_data=[sequence.frames[0]], vrc=None, progress=False
    ).train()
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    segment_image(prepared, Image.fromarray(sequence.frames[0]), PROMPTS)
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
    assert all(module.training for module in prepared.modules())
