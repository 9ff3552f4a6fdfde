"""SAM2's video predictor makes one mask large instead of three, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao import load_embedded
from qsam2_ao.compat.quiet import propagate_quietly
from qsam2_ao.compat.video_predictor import lean_video
from qsam2_ao.data.procedural import Sequence
from qsam2_ao.predictors import predictor_state


class ReadsAll(SAM2VideoPredictor):
    """Looks at all three, as trackers that choose in another way do."""

    shapes: list[Any]

    def _track_step(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._track_step(*args, **kwargs)
        self.shapes.append(found[1][1].shape)
        return found


def track(predictor: SAM2VideoPredictor, clip: Sequence) -> torch.Tensor:
    state = predictor_state(predictor, clip.frames)
    predictor.add_new_points_or_box(state, 0, obj_id=1, points=[[48, 48]], labels=[1])
    return torch.stack([logits for *_, logits in propagate_quietly(predictor, state)])


@pytest.mark.parametrize("threads", [1, 2])
def test_one_mask_made_large_is_the_same_to_the_bit(
    threads: int, sequence: Sequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, before = load_embedded(SAM2VideoPredictor), torch.get_num_threads()
    enlarged: list[int] = []
    interpolate = torch.nn.functional.interpolate

    def counted(masks: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("size") == (96, 96):
            enlarged.append(masks.shape[1])
        return interpolate(masks, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "interpolate", counted)
    torch.set_num_threads(threads)
    try:
        found = track(predictor, sequence)
        assert (3 in enlarged) == (threads == 1)
        monkeypatch.setattr(SAM2VideoPredictor, "_forward_sam_heads", SAM2Base._forward_sam_heads)
        assert torch.equal(track(predictor, sequence), found)
    finally:
        torch.set_num_threads(before)


def test_a_subclass_that_reads_all_three_has_them(sequence: Sequence) -> None:
    predictor, before = load_embedded(ReadsAll), torch.get_num_threads()
    predictor.shapes = []
    torch.set_num_threads(2)
    try:
        track(predictor, sequence)
    finally:
        torch.set_num_threads(before)
    assert (1, 3, 96, 96) in predictor.shapes


def test_a_second_call_changes_nothing() -> None:
    load_embedded(SAM2VideoPredictor)
    before = dict(vars(SAM2VideoPredictor))
    with lean_video():
        pass
    assert dict(vars(SAM2VideoPredictor)) == before
