from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sam2.sam2_video_predictor import SAM2VideoPredictor
from threads import at_once

from qsam2_ao.compat.quiet import propagate_one, propagate_quietly
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.predictors import predictor_state

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)


@pytest.fixture
def prompted() -> tuple[Any, dict[str, Any]]:
    predictor: Any = build_embedded(SAM2VideoPredictor)
    state = predictor_state(predictor, FRAMES)
    predictor.add_new_points_or_box(state, 0, 1, points=[[32, 24]], labels=[1])
    return predictor, state


def test_yields_the_same_and_prints_nothing(prompted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    predictor, state = prompted
    quiet = [(frame, ids, logits.numpy()) for frame, ids, logits in propagate_quietly(predictor, state)]
    assert capsys.readouterr().err == ""
    loud = [(frame, ids, logits.numpy()) for frame, ids, logits in predictor.propagate_in_video(state)]
    assert "propagate in video" in capsys.readouterr().err
    assert len(quiet) == 3
    for one, other in zip(quiet, loud, strict=True):
        assert one[:2] == other[:2]
        np.testing.assert_array_equal(one[2], other[2])


def test_arguments_and_no_gradients(prompted: Any) -> None:
    predictor, state = prompted
    found = list(propagate_quietly(predictor, state, start_frame_idx=0, max_frame_num_to_track=1))
    assert [frame for frame, *_ in found] == [0, 1]
    assert all(logits.is_inference() for *_, logits in found)


@pytest.mark.parametrize("reverse", [False, True])
def test_one_frame_after_another_is_the_whole(reverse: bool, capsys: pytest.CaptureFixture[str]) -> None:
    predictor: Any = build_embedded(SAM2VideoPredictor)
    start, order = (2, (2, 1, 0)) if reverse else (0, (0, 1, 2))
    states = [predictor_state(predictor, FRAMES) for _ in range(2)]
    for state in states:
        predictor.add_new_points_or_box(state, start, 1, points=[[32, 24]], labels=[1])
    whole = list(propagate_quietly(predictor, states[0], start_frame_idx=start, reverse=reverse))
    single = [propagate_one(predictor, states[1], frame, reverse) for frame in order]
    assert [frame for frame, *_ in single] == [frame for frame, *_ in whole] == list(order)
    for one, other in zip(single, whole, strict=True):
        assert one[1] == other[1]
        np.testing.assert_array_equal(one[2].numpy(), other[2].numpy())
    assert capsys.readouterr().err == ""


def test_a_users_own_loop_runs(prompted: Any) -> None:
    predictor, state = prompted

    class Mine(SAM2VideoPredictor):
        def propagate_in_video(self, inference_state: Any, **arguments: Any) -> Any:
            yield "mine"
            yield from super().propagate_in_video(inference_state, **arguments)

    predictor.__class__ = Mine
    assert next(propagate_quietly(predictor, state)) == "mine"
    assert propagate_one(predictor, state, 0) == "mine"


@pytest.mark.slow
def test_other_threads_see_their_bars(capsys: pytest.CaptureFixture[str]) -> None:
    from sam2 import sam2_video_predictor

    def quiet() -> None:
        predictor: Any = build_embedded(SAM2VideoPredictor)
        for _ in range(3):
            state = predictor_state(predictor, FRAMES)
            predictor.add_new_points_or_box(state, 0, 1, points=[[32, 24]], labels=[1])
            assert len(list(propagate_quietly(predictor, state))) == 3

    def loud() -> int:
        return sum(sum(sam2_video_predictor.tqdm(range(3), desc="mine")) == 3 for _ in range(50))

    before = sam2_video_predictor.tqdm
    assert at_once(quiet, loud, quiet) == [None, 50, None]
    printed = capsys.readouterr().err
    assert printed.count("mine: 100%") == 50
    assert "propagate" not in printed
    assert sam2_video_predictor.tqdm is before
