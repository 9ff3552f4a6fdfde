"""Objects in an image, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sam2.sam2_image_predictor import SAM2ImagePredictor

from qsam2_ao.data.pictures import read_ids
from qsam2_ao.data.procedural import Sequence
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
