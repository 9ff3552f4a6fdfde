"""A packed model in SAM2's own predictors: every prompt and way of tracking that they offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.sam2_image_predictor import SAM2ImagePredictor

from qsam2_ao import convert_qsam2, load_embedded, load_qsam2, save_qsam2
from qsam2_ao.data.procedural import Sequence, generate_sequence, generate_split
from qsam2_ao.evaluation import mask_iou
from qsam2_ao.predictors import predictor_state


@pytest.fixture(scope="module")
def sequence() -> Sequence:
    return generate_sequence("val", 0, num_frames=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trained embedded model at 8 bits, written to a file and loaded."""
    path: Path = tmp_path_factory.mktemp("predictors") / "w8a8.safetensors"
    images = [s.frames[0] for s in generate_split("train", 8, num_frames=1)]
    save_qsam2(convert_qsam2(load_embedded(), "w8a8", images, vrc=None, progress=False), path)
    return load_qsam2(path)


@pytest.mark.slow
def test_points_boxes_masks_and_batches(model: Any, sequence: Sequence) -> None:
    predictor = SAM2ImagePredictor(model)
    frame, (object_id, prompt) = sequence.frames[0], next(iter(sequence.prompts.items()))
    truth = sequence.masks[0] == object_id
    predictor.set_image(frame)
    by_point, scores, logits = predictor.predict(prompt.points[:1], prompt.labels[:1], multimask_output=True)
    assert by_point.shape == (3, *frame.shape[:2])
    assert scores.shape == (3,)
    by_box, _, _ = predictor.predict(box=prompt.box, multimask_output=False)
    assert mask_iou(by_box[0].astype(bool), truth) > 0.6
    best = logits[int(scores.argmax())][None]
    by_mask, _, _ = predictor.predict(prompt.points[:1], prompt.labels[:1], mask_input=best, multimask_output=False)
    assert by_mask.shape == (1, *frame.shape[:2])

    predictor.set_image_batch([frame, sequence.frames[3]])
    boxes = [np.stack([prompt.box, prompt.box]), prompt.box[None]]
    masks, _, _ = predictor.predict_batch(box_batch=boxes, multimask_output=False)
    assert [len(m) for m in masks] == [2, 1]
    np.testing.assert_array_equal(masks[0][0].reshape(by_box[0].shape), by_box[0])


# SAM2 keeps its memories in bfloat16 and expects autocast, for float models just as for packed ones.
@torch.inference_mode()
@torch.autocast("cpu", torch.bfloat16)
def test_several_objects_later_prompts_both_directions_and_reset(model: Any, sequence: Sequence) -> None:
    state = predictor_state(model, sequence.frames)
    first, second = list(sequence.prompts)[:2]
    model.add_new_mask(state, 0, first, sequence.masks[0] == first)
    model.add_new_points_or_box(state, 3, second, box=sequence.prompt(second, 3).box)
    forward = {t: masks for t, _, masks in model.propagate_in_video(state)}
    assert sorted(forward) == list(range(6))
    assert forward[5].shape == (2, 1, *sequence.frames.shape[1:3])
    assert mask_iou(forward[5][0, 0].float().numpy() > 0, sequence.masks[5] == first) > 0.5

    backward = {t: masks for t, _, masks in model.propagate_in_video(state, start_frame_idx=3, reverse=True)}
    assert sorted(backward) == [0, 1, 2, 3]

    model.reset_state(state)
    model.add_new_mask(state, 0, first, sequence.masks[0] == first)
    again = {t: masks for t, _, masks in model.propagate_in_video(state)}
    assert again[5].shape[0] == 1


@pytest.mark.slow
def test_the_mask_generator(model: Any, sequence: Sequence) -> None:
    found = SAM2AutomaticMaskGenerator(
        model, points_per_side=8, pred_iou_thresh=0.3, stability_score_thresh=0.7
    ).generate(sequence.frames[0])
    assert found
    best = max(
        mask_iou(each["segmentation"], sequence.masks[0] == object_id)
        for each in found
        for object_id in sequence.prompts
    )
    assert best > 0.5
