"""Frames that come one by one, against SAM2's video predictor on the whole clip: the same bits, without its memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao import load_embedded, load_qsam2, prepare_qsam2
from qsam2_ao.compat.quiet import propagate_quietly
from qsam2_ao.data.procedural import Sequence, generate_sequence
from qsam2_ao.errors import DataError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.predictors import as_video_predictor, predictor_state
from qsam2_ao.segmentation import StreamingPredictor

CLICK = {"points": [[30.0, 40.0], [5.0, 90.0]], "labels": [1, 0]}
BOX = {"box": [20.0, 25.0, 70.0, 80.0]}
CORRECTION = {"points": [[50.0, 50.0], [10.0, 10.0]], "labels": [1, 0]}
Logits = dict[int, dict[int, NDArray[np.float32]]]


@pytest.fixture(scope="module")
def clip() -> Sequence:
    """More frames than SAM2 has memories (7) and pointers (16)."""
    return generate_sequence("test", 2, num_frames=24)


def by_sam2(state: Any, predictor: Any, **arguments: Any) -> Logits:
    return {
        frame: dict(zip(list(ids), logits[:, 0].float().cpu().numpy().copy(), strict=True))
        for frame, ids, logits in propagate_quietly(predictor, state, **arguments)
    }


def same(ours: Logits, theirs: Logits) -> None:
    assert ours.keys() == theirs.keys()
    for frame, found in theirs.items():
        assert list(ours[frame]) == list(found), frame
        for object_id, logits in found.items():
            np.testing.assert_array_equal(ours[frame][object_id], logits, err_msg=f"frame {frame} object {object_id}")


def stream(model: Any, frames: Any, **arguments: Any) -> Logits:
    """Two objects from the first frame on."""
    streaming = StreamingPredictor(model, num_frames=len(frames), **arguments)
    streaming.start(frames[0])
    streaming.prompt(7, **CLICK)
    found = {0: streaming.prompt(3, **BOX).logits}
    return found | {masks.frame: masks.logits for masks in map(streaming.step, frames[1:])}


def whole(predictor: Any, frames: Any) -> Logits:
    state = predictor_state(predictor, frames)
    predictor.add_new_points_or_box(state, 0, 7, **CLICK)
    predictor.add_new_points_or_box(state, 0, 3, **BOX)
    return by_sam2(state, predictor)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"apply_postprocessing": True},
        {"memory_temporal_stride_for_eval": 3},
        {"num_maskmem": 2},
        {"non_overlap_masks": True, "max_obj_ptrs_in_encoder": 4},
    ],
    ids=str,
)
def test_the_masks_are_sam2s_to_the_bit(settings: dict[str, Any], clip: Sequence) -> None:
    torch.manual_seed(0)
    predictor = build_embedded(SAM2VideoPredictor, **settings)
    same(stream(predictor, clip.frames), whole(predictor, clip.frames))


@pytest.mark.parametrize("length", [1, 5])
def test_a_clip_shorter_than_the_pointers(predictor: Any, clip: Sequence, length: int) -> None:
    same(stream(predictor, clip.frames[:length]), whole(predictor, clip.frames[:length]))


@pytest.mark.parametrize("kind", ["base", "prepared", "packed", "auto"])
def test_every_kind_of_model(kind: str, clip: Sequence, packed_file: Path) -> None:
    if kind == "base":
        model: Any = load_embedded(SAM2Base)
    elif kind == "prepared":
        model = prepare_qsam2(load_embedded(), "w4a8", calibration_data=list(clip.frames[:1]), vrc=None)
        model.train()
    else:
        model = load_qsam2(packed_file, target=kind)
    modes = [module.training for module in model.modules()]
    ours = stream(model, clip.frames[:9])
    assert [module.training for module in model.modules()] == modes
    model.eval()
    same(ours, whole(as_video_predictor(model), clip.frames[:9]))


def test_callers_may_draw_on_the_frame_that_they_gave(predictor: Any, clip: Sequence) -> None:
    """As one does who shows it and asks for a click."""
    given = clip.frames[0].copy()
    streaming = StreamingPredictor(predictor)
    streaming.start(given)
    given[:] = 0
    found = streaming.prompt(7, **CLICK).logits
    streaming.start(clip.frames[0])
    expected = streaming.prompt(7, **CLICK).logits
    np.testing.assert_array_equal(found[7], expected[7])


def test_corrections_new_objects_and_removals(predictor: Any, clip: Sequence) -> None:
    frames, mask = clip.frames, clip.masks[12] == clip.object_ids[0]
    streaming = StreamingPredictor(predictor)
    streaming.start(frames[0])
    ours = {0: streaming.prompt(7, **CLICK).logits}
    for frame in frames[1:9]:
        masks = streaming.step(frame)
        ours[masks.frame] = masks.logits
    corrected = streaming.prompt(7, **CORRECTION, frame=8)
    more = streaming.prompt(7, points=[[60.0, 20.0]], labels=[0], add=True)
    for frame in frames[9:13]:
        streaming.step(frame)
    streaming.prompt(7, **CLICK)
    streaming.prompt(3, mask=mask)
    ours[12] = streaming.prompt(9, **BOX).logits
    for frame in frames[13:18]:
        masks = streaming.step(frame)
        ours[masks.frame] = masks.logits
    assert list(streaming.remove(7).logits) == [3, 9]
    for frame in frames[18:]:
        masks = streaming.step(frame)
        ours[masks.frame] = masks.logits

    state = predictor_state(predictor, frames)
    predictor.add_new_points_or_box(state, 0, 7, **CLICK)
    theirs = by_sam2(state, predictor, max_frame_num_to_track=8)
    _, _, found = predictor.add_new_points_or_box(state, 8, 7, **CORRECTION)
    np.testing.assert_array_equal(corrected.logits[7], found[0, 0].numpy())
    _, _, found = predictor.add_new_points_or_box(state, 8, 7, [[60.0, 20.0]], [0], clear_old_points=False)
    np.testing.assert_array_equal(more.logits[7], found[0, 0].numpy())
    assert (more.logits[7] != theirs[8][7]).any()
    by_sam2(state, predictor, start_frame_idx=9, max_frame_num_to_track=3)
    predictor.add_new_points_or_box(state, 12, 7, **CLICK)
    predictor.add_new_mask(state, 12, 3, mask)
    predictor.add_new_points_or_box(state, 12, 9, **BOX)
    theirs |= by_sam2(state, predictor, start_frame_idx=13, max_frame_num_to_track=4)
    predictor.remove_object(state, 7, need_output=False)
    theirs |= by_sam2(state, predictor, start_frame_idx=18)
    compared = [0, *range(1, 9), *range(13, 24)]
    same({t: ours[t] for t in compared}, {t: theirs[t] for t in compared})
    assert list(ours[12]) == [7, 3, 9]


def test_backward(predictor: Any, clip: Sequence) -> None:
    frames = clip.frames
    streaming = StreamingPredictor(predictor, num_frames=len(frames), backward=True)
    streaming.start(frames[20], 20)
    ours = {20: streaming.prompt(1, **BOX).logits}
    for frame in frames[19::-1]:
        masks = streaming.step(frame)
        ours[masks.frame] = masks.logits
    state = predictor_state(predictor, frames)
    predictor.add_new_points_or_box(state, 20, 1, **BOX)
    same(ours, by_sam2(state, predictor, start_frame_idx=20, reverse=True))
    with pytest.raises(DataError, match="no frame before frame 0"):
        streaming.step(frames[0])


def test_everything_removed_and_started_again(predictor: Any, clip: Sequence) -> None:
    streaming = StreamingPredictor(predictor)
    streaming.start(clip.frames[0])
    assert streaming.step(clip.frames[1]).logits == {}
    streaming.prompt(5, **BOX)
    assert streaming.remove(5).logits == {}
    assert not streaming.step(clip.frames[2]).ids.any()
    first = streaming.prompt(5, **BOX)
    assert (first.frame, streaming.object_ids, first.latency_ms > 0) == (2, [5], True)
    assert set(np.unique(streaming.step(clip.frames[3]).ids)) <= {0, 5}
    streaming.start(clip.frames[0])
    assert streaming.object_ids == []


def tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, (list, tuple)) else 0


def entries(value: Any) -> int:
    return sum(map(entries, value.values())) + len(value) if isinstance(value, dict) else 0


def test_memory_does_not_grow(predictor: Any, clip: Sequence) -> None:
    def camera() -> Iterator[NDArray[np.uint8]]:
        for turn in range(4):
            yield from clip.frames[turn != 0 :]

    streaming = StreamingPredictor(predictor)
    source = camera()
    streaming.start(next(source))
    streaming.prompt(1, **BOX)
    sizes = []
    for frame in source:
        streaming.step(frame)
        state = streaming._tracker._state
        sizes.append((tensor_bytes(state), entries(state)))
    assert len(sizes) > 80
    assert max(sizes[20:40]) == max(sizes[60:])


def test_memory_of_prompts_does_not_grow(predictor: Any, clip: Sequence) -> None:
    streaming = StreamingPredictor(predictor)
    streaming.start(clip.frames[0])
    kept = []
    for index in range(24):
        mask = np.zeros(clip.frames[0].shape[:2], bool)
        mask[20 + index : 60 + index, 20:60] = True
        streaming.prompt(1, **({"mask": mask} if index % 2 else BOX))
        state = streaming._tracker._state
        kept.append(entries(state["mask_inputs_per_obj"]) + entries(state["point_inputs_per_obj"]))
        streaming.step(clip.frames[index % len(clip.frames)])
    assert max(kept[4:]) == max(kept[:4])


def test_a_mask_of_which_the_network_sees_nothing_is_refused(predictor: Any) -> None:
    streaming, mask = StreamingPredictor(predictor), np.zeros((900, 1200), bool)
    mask[40:43, 40:43] = True
    streaming.start(np.zeros((900, 1200, 3), np.uint8))
    with pytest.raises(DataError, match="object 1: its mask is empty, or too small for the network's input of"):
        streaming.prompt(1, mask=mask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"object 1: there is no prompt: give points with labels, or box"),
        ({"points": [[1, 2]]}, r"object 1: points has no labels: give labels, \[1\]"),
        ({"labels": [1]}, "object 1: labels has no points"),
        ({"points": [[1, 2, 3]], "labels": [1]}, r"points has shape \[1, 3\], wanted \[N, 2\]"),
        ({"points": [[[1, 2]], [[3, 4]]], "labels": [[1], [1]]}, "the prompt is for 2 objects; give each its own id"),
        ({"box": [1, 2, 3, 4], "mask": np.zeros((96, 96), bool)}, "a mask and another prompt"),
        ({"mask": np.zeros((9, 9), bool)}, r"object 1: mask has shape \[9, 9\], wanted \[96, 96\]"),
        ({"box": [1, 2, 3, 4], "add": True}, "without add=True"),
        ({"box": [1, 2, 3, 4], "frame": 1}, "frame 1 has passed: the stream is at frame 2 and cannot be read again"),
        ({"box": [1, 2, 3, 4], "frame": 3}, "frame 3 has not come yet"),
    ],
)
def test_prompts_that_cannot_be_heard(predictor: Any, clip: Sequence, arguments: dict[str, Any], message: str) -> None:
    streaming = StreamingPredictor(predictor)
    for frame in clip.frames[:3]:
        streaming.step(frame) if streaming._tracker else streaming.start(frame)
    with pytest.raises(DataError, match=message):
        streaming.prompt(1, **arguments)


def test_what_cannot_be_streamed(predictor: Any, clip: Sequence) -> None:
    streaming = StreamingPredictor(predictor)
    for call in (
        lambda: streaming.step(clip.frames[0]),
        lambda: streaming.prompt(1, **BOX),
        lambda: streaming.remove(1),
    ):
        with pytest.raises(DataError, match="call start with its first frame"):
            call()
    with pytest.raises(DataError, match=r"frame 0 is float64 \[96, 96, 3\]; wanted RGB, uint8 \[height, width, 3\]"):
        streaming.start(clip.frames[0] / 2)
    streaming.start(clip.frames[0])
    with pytest.raises(
        DataError, match=r"frame 1 is uint8 \[96, 90, 3\]; wanted RGB, uint8 \[96, 96, 3\], as the first"
    ):
        streaming.step(clip.frames[1][:, :90])
    with pytest.raises(DataError, match=r"object 4 cannot be removed: it is not tracked on frame 0 \(none\)"):
        streaming.remove(4)
