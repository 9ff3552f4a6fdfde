"""What lies around the exported networks, on the networks themselves: the predictors' masks, for any valid prompt."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor, nn

from qsam2_ao import load_embedded
from qsam2_ao.compat.quiet import propagate_quietly
from qsam2_ao.data.procedural import Sequence, generate_sequence
from qsam2_ao.errors import DataError
from qsam2_ao.export import ExportedSAM2
from qsam2_ao.export.parts import export_parts
from qsam2_ao.export.settings import ExportSettings
from qsam2_ao.export.tracker import Networks
from qsam2_ao.predictors import predictor_state
from qsam2_ao.segmentation import ObjectPrompt, StreamingPredictor, segment_image, track_frames
from qsam2_ao.segmentation.video import check_heard

BOX, CLICKS = {"box": [20.0, 55.0, 60.0, 90.0]}, {"points": [[45.0, 72.0], [5.0, 5.0]], "labels": [1, 0]}


@pytest.fixture(scope="module")
def model() -> Any:
    return load_embedded(SAM2VideoPredictor)


@pytest.fixture(scope="module")
def clip() -> Sequence:
    return generate_sequence("test", 2, num_frames=20)


@pytest.fixture(scope="module")
def exported(model: Any) -> ExportedSAM2:
    """The parts that are exported, before they are."""

    def opened(module: nn.Module) -> Any:
        def call(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                found = module(*inputs)
            return found if isinstance(found, tuple) else (found,)

        return call

    sam = ExportedSAM2.__new__(ExportedSAM2)
    sam.settings = ExportSettings.of(model, "onnx")
    sam.networks = Networks(*(opened(part.module) for part in sorted(export_parts(model), key=place)))
    sam._image, sam._image_size = None, (0, 0)
    return sam


@pytest.fixture(scope="module")
def older(exported: ExportedSAM2) -> ExportedSAM2:
    """As an older version exported it: with a decoder that reads no masks, and no file for them."""

    def decoder(*inputs: Tensor) -> tuple[Tensor, ...]:
        features, middle, fine, coords, labels = inputs
        return exported.networks.mask_decoder(
            features, middle, fine, coords, labels, torch.zeros(1, 1, 24, 24), torch.zeros(1)
        )

    sam = copy.copy(exported)
    sam.settings = dataclasses.replace(exported.settings, mask_prompts=False)
    sam.networks = exported.networks._replace(mask_decoder=decoder, mask_downsampling=None)
    return sam


def place(part: Any) -> int:
    return Networks._fields.index(part.name)


LOGITS = np.random.default_rng(0).normal(0, 4, (2, 24, 24)).astype(np.float32)
PROMPTS: dict[str, dict[str, Any]] = {
    "click": {"point_coords": [[45, 72]], "point_labels": [1]},
    "clicks of one object, batched": {"point_coords": [[[45, 72], [5, 5]]], "point_labels": [[1, 0]]},
    "two objects": {"point_coords": [[[45, 72]], [[90, 20]]], "point_labels": [[1], [1]]},
    "padded": {"point_coords": [[[45, 72], [5, 5]], [[90, 20], [0, 0]]], "point_labels": [[1, 0], [1, -1]]},
    "box": {"box": [20, 55, 60, 79]},
    "one box, batched": {"box": [[20, 55, 60, 79]]},
    "two boxes": {"box": [[20, 55, 60, 79], [80, 0, 96, 50]]},
    "boxes and clicks": {
        "box": [[20, 55, 60, 79], [80, 0, 96, 50]],
        "point_coords": [[[45, 72]], [[90, 20]]],
        "point_labels": [[1], [1]],
    },
    "a box and a mask": {"box": [20, 55, 60, 79], "mask_input": LOGITS[:1]},
    "a mask and a padding click": {"point_coords": [[0, 0]], "point_labels": [-1], "mask_input": LOGITS[:1]},
    "two boxes and masks": {"box": [[20, 55, 60, 79], [80, 0, 96, 50]], "mask_input": LOGITS[:, None]},
}


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("name", list(PROMPTS))
def test_images(exported: ExportedSAM2, model: Any, clip: Sequence, name: str, several: bool) -> None:
    picture = np.ascontiguousarray(clip.frames[0][:80])  # not square
    given = {key: np.array(value) for key, value in PROMPTS[name].items()}
    theirs = SAM2ImagePredictor(model)
    theirs.set_image(picture)
    exported.set_image(picture)
    for ours, expected in zip(
        exported.predict(**given, multimask_output=several, return_logits=True),
        theirs.predict(**given, multimask_output=several, return_logits=True),
        strict=True,
    ):
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)
    masks, _, _ = exported.predict(**given, multimask_output=several)
    assert masks.dtype == np.bool_


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"point_coords": [[1, 2, 3, 4], [5, 6, 7, 8]], "point_labels": [1] * 4}, r"\[2, 4\], wanted .*transposed"),
        ({"point_coords": [[np.nan, 3]], "point_labels": [1]}, "point_coords .* NaN"),
        ({"box": [[1, 1, 50, 50]] * 2, "point_coords": [[3, 3]], "point_labels": [1]}, "different numbers of objects"),
        ({"box": [50, 1, 1, 50]}, "has no area"),
        ({}, "there is no prompt"),
        ({"box": [1, 1, 50, 50], "mask_input": np.zeros((1, 96, 96))}, r"mask_input .* wanted logits \[1, 24, 24\]"),
        ({"mask_input": np.zeros((1, 24, 24))}, r"mask_input is alone, .* padding click point_coords=\[\[0, 0\]\]"),
    ],
)
def test_prompts_that_break_the_rules(exported: ExportedSAM2, clip: Sequence, given: Any, message: str) -> None:
    exported.set_image(clip.frames[0])
    with pytest.raises(DataError, match=message):
        exported.predict(**given)


def agree(ours: dict[int, Any], theirs: dict[int, Any]) -> None:
    assert ours.keys() == theirs.keys()
    same = [((ours[t][i] > 0) == (m > 0)).mean() for t, found in theirs.items() for i, m in found.items()]
    assert min(same) > 0.99
    assert any((m > 0).any() for found in theirs.values() for m in found.values())


def by_sam2(model: Any, frames: Any, frame: int, said: dict[int, dict[str, Any]], **arguments: Any) -> dict[int, Any]:
    state = predictor_state(model, frames)
    for object_id, prompt in said.items():
        model.add_new_points_or_box(state, frame, object_id, **prompt)
    found = propagate_quietly(model, state, start_frame_idx=frame, **arguments)
    return {t: dict(zip(list(ids), logits[:, 0].numpy().copy(), strict=True)) for t, ids, logits in found}


def test_videos(exported: ExportedSAM2, model: Any, clip: Sequence) -> None:
    said = {2: BOX, 9: CLICKS}
    expected = by_sam2(model, clip.frames, 0, said)
    agree(dict(exported.track(clip.frames, said)), expected)
    streaming = StreamingPredictor(exported, num_frames=20)
    streaming.start(clip.frames[0])
    streaming.prompt(2, **BOX)
    ours = {0: streaming.prompt(9, **CLICKS).logits}
    agree(ours | {t: streaming.step(clip.frames[t]).logits for t in range(1, 20)}, expected)


def test_backward(exported: ExportedSAM2, model: Any, clip: Sequence) -> None:
    streaming = StreamingPredictor(exported, num_frames=20, backward=True)
    streaming.start(clip.frames[18], 18)
    ours = {18: streaming.prompt(2, **BOX).logits}
    ours |= {t: streaming.step(clip.frames[t]).logits for t in range(17, -1, -1)}
    agree(ours, by_sam2(model, clip.frames, 18, {2: BOX}, reverse=True))


def test_objects_come_and_go(exported: ExportedSAM2, model: Any, clip: Sequence) -> None:
    first, second = ObjectPrompt(box=(20, 55, 60, 90)), ObjectPrompt([(90.0, 20.0, 1)])
    prompts: Any = {0: {1: first}, 2: {2: second}, 5: {1: None}}
    tracked = dict(track_frames(exported, clip.frames[:8], prompts))
    expected = dict(track_frames(model, clip.frames[:8], prompts))
    assert min((tracked[t] == expected[t]).mean() for t in range(8)) > 0.98
    assert set(np.unique(tracked[7])) <= {0, 2}


MASK = np.zeros((96, 96), bool)
MASK[55:90, 20:60] = True


def test_masks_and_corrections(exported: ExportedSAM2, model: Any, clip: Sequence) -> None:
    click = ObjectPrompt([(30.0, 60.0, 0)])
    prompts: Any = {
        0: {1: ObjectPrompt(mask=MASK), 2: ObjectPrompt([(90.0, 20.0, 1)])},
        3: {1: click},
        5: {1: ObjectPrompt(mask=MASK), 2: ObjectPrompt(box=(70, 5, 95, 40))},
        6: {2: click},
    }
    tracked = dict(track_frames(exported, clip.frames[:10], prompts))
    expected = dict(track_frames(model, clip.frames[:10], prompts))
    assert min((tracked[t] == expected[t]).mean() for t in range(10)) > 0.98
    without = dict(track_frames(model, clip.frames[:10], {0: prompts[0]}))
    assert max((without[t] != expected[t]).mean() for t in range(10)) > 0.05  # something was corrected


@pytest.mark.parametrize("corrected_as_first", [False, True])
def test_prompts_about_one_frame_one_after_the_other(
    exported: ExportedSAM2, model: Any, clip: Sequence, monkeypatch: pytest.MonkeyPatch, corrected_as_first: bool
) -> None:
    monkeypatch.setattr(model, "add_all_frames_to_correct_as_cond", corrected_as_first)
    changed = copy.copy(exported)
    changed.settings = ExportSettings.of(model, "onnx")
    found = []
    for one in (changed, model):
        streaming = StreamingPredictor(one, num_frames=20)
        streaming.start(clip.frames[0])
        streaming.prompt(1, **BOX)
        masks = [streaming.prompt(1, points=[[40, 60]], labels=[0], add=True).logits]
        for t in range(1, 9):
            masks.append(streaming.step(clip.frames[t]).logits)
            if t == 4:
                masks.append(streaming.prompt(1, points=[[25, 65]], labels=[0]).logits)
                masks.append(streaming.prompt(1, points=[[55, 80]], labels=[0], add=True).logits)
            if t == 6:
                masks.append(streaming.prompt(1, mask=MASK).logits)
                masks.append(streaming.prompt(1, **CLICKS).logits)
        found.append(dict(enumerate(masks)))
    agree(*found)


def test_a_mask_segments_an_image(exported: ExportedSAM2, model: Any, clip: Sequence) -> None:
    picture, prompts = Image.fromarray(clip.frames[0]), {3: ObjectPrompt(mask=MASK)}
    (ours, score), (theirs, expected) = (segment_image(one, picture, prompts) for one in (exported, model))
    np.testing.assert_allclose(ours[3], theirs[3], rtol=1e-3, atol=1e-3)
    assert score[3] == pytest.approx(expected[3], abs=1e-3)


def test_segmenting_leaves_the_callers_picture(exported: ExportedSAM2, clip: Sequence) -> None:
    click = {"point_coords": np.array([[40.0, 60.0]]), "point_labels": np.array([1])}
    exported.set_image(clip.frames[0])
    before = exported.predict(**click)
    segment_image(exported, Image.fromarray(clip.frames[5]).resize((50, 70)), {1: ObjectPrompt(box=(1, 1, 30, 30))})
    for one, other in zip(exported.predict(**click), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_frame_that_was_prompted_can_be_tracked(exported: ExportedSAM2, clip: Sequence) -> None:
    """There is no other memory: it is segmented as it stands."""
    tracker = exported.tracker()
    tracker.show(0, clip.frames[0])
    tracker.prompt(1, MASK, add=False)
    tracker.track()
    assert tracker.masks()[1].shape[-2:] == clip.frames[0].shape[:2]


def test_what_older_files_refuse(older: ExportedSAM2, exported: ExportedSAM2, clip: Sequence) -> None:
    said = {2: BOX, 9: CLICKS}
    agree(dict(older.track(clip.frames[:4], said)), dict(exported.track(clip.frames[:4], said)))
    with pytest.raises(DataError, match="frame 0, object 1: it is a mask, and these files, which an older version"):
        next(track_frames(older, clip.frames, {1: ObjectPrompt(mask=MASK)}))
    box = ObjectPrompt(box=(20, 55, 60, 90))
    with pytest.raises(DataError, match="frame 3, object 1: the object is tracked already"):
        next(track_frames(older, clip.frames, {0: {1: box}, 3: {1: box}}))
    streaming = StreamingPredictor(older)
    streaming.start(clip.frames[0])
    with pytest.raises(DataError, match=r"object 1 has a mask, and these files read clicks and boxes only: .* again"):
        streaming.prompt(1, mask=MASK)
    streaming.prompt(1, **BOX)
    streaming.step(clip.frames[1])
    with pytest.raises(DataError, match="object 1 is tracked on frame 1 already and would be corrected, and these"):
        streaming.prompt(1, **CLICKS)
    older.set_image(clip.frames[0])
    with pytest.raises(DataError, match="mask_input is given, and these files read clicks and boxes only"):
        older.predict(box=np.array([1, 1, 50, 50]), mask_input=LOGITS[:1])


def test_an_empty_mask_is_refused(exported: ExportedSAM2, clip: Sequence) -> None:
    streaming = StreamingPredictor(exported)
    streaming.start(clip.frames[0])
    with pytest.raises(DataError, match="object 1: its mask is empty"):
        streaming.prompt(1, mask=np.zeros((96, 96), bool))
    speck = np.zeros((960, 960), bool)
    speck[400:403, 400:403] = True
    streaming.start(np.zeros((960, 960, 3), np.uint8))
    with pytest.raises(DataError, match="or too small for the network's input of 96 pixels"):
        streaming.prompt(1, mask=speck)
    assert streaming.object_ids == []


def test_memory_does_not_grow(exported: ExportedSAM2, clip: Sequence) -> None:
    streaming = StreamingPredictor(exported)
    streaming.start(clip.frames[0])
    streaming.prompt(1, **BOX)
    kept = []
    for _ in range(3):
        for frame in clip.frames:
            streaming.step(frame)
            memory = streaming._tracker._objects[1]
            kept.append((len(memory.frames), len(memory.pointers)))
    assert kept[30:] == [kept[-1]] * 30


def test_only_older_files_cannot_correct(exported: ExportedSAM2, older: ExportedSAM2) -> None:
    click = ObjectPrompt([(45, 72, 1)])
    check_heard(exported, {0: {1: click}, 2: {1: click}})
    with pytest.raises(DataError, match=r"frame 2.*export the model again"):
        check_heard(older, {0: {1: click}, 2: {1: click}})
