from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training.model.sam2 import SAM2Train

from qsam2_ao.data.davis import read_davis
from qsam2_ao.data.procedural import Sequence, generate_sequence, write_sequence
from qsam2_ao.errors import DataError
from qsam2_ao.evaluation import evaluate_video, score_sequence, track_sequence
from qsam2_ao.models.config import as_class


@pytest.fixture(scope="module")
def sequence() -> Sequence:
    return generate_sequence("test", 0, num_frames=4)


def late(sequence: Sequence) -> Sequence:
    """Object 2 is annotated from frame 2 on."""
    masks = sequence.masks.copy()
    masks[:2][masks[:2] == 2] = 0
    return replace(sequence, masks=masks)


def test_tracks_as_the_predictor_does_by_hand(predictor: Any, sequence: Sequence, tmp_path: Path) -> None:
    from PIL import Image

    for t, frame in enumerate(sequence.frames):
        Image.fromarray(frame).save(tmp_path / f"{t}.jpg", format="PNG")
    state = predictor.init_state(str(tmp_path))
    for object_id in sequence.object_ids:
        predictor.add_new_mask(state, 0, object_id, sequence.masks[0] == object_id)
    predicted = track_sequence(predictor, sequence)
    assert predicted.shape == sequence.masks.shape
    assert predicted.dtype == np.uint8
    frames = 0
    for t, ids, logits in predictor.propagate_in_video(state):
        scores, winner = logits[:, 0].max(0)
        expected = torch.where(scores > 0, torch.tensor(ids)[winner], 0)
        assert np.array_equal(predicted[t], expected.numpy())
        frames += 1
    assert frames == 4


def test_the_prompted_mask_comes_back(predictor: Any, sequence: Sequence) -> None:
    scores = score_sequence("s", track_sequence(predictor, sequence)[:1], sequence.masks[:1],
                            skip_first_and_last=False)  # fmt: skip
    assert np.mean([score.j for score in scores]) > 80


def test_short_sequences_are_refused_before_any_is_tracked(predictor: Any, sequence: Sequence, tmp_path: Path) -> None:
    write_sequence(sequence, tmp_path)
    write_sequence(replace(sequence, frames=sequence.frames[:1], masks=sequence.masks[:1], name="z"), tmp_path)
    sequences = read_davis(tmp_path)
    (tmp_path / "JPEGImages" / sequence.name / "00002.jpg").write_text("damaged")  # tracking would find it
    with pytest.raises(DataError, match=r"too few annotated frames in z \(1\).*--all-frames"):
        evaluate_video(predictor, sequences)
    with pytest.raises(DataError, match=r"too few annotated frames in z \(1\)"):
        evaluate_video(predictor, iter(sequences[1:]))
    assert evaluate_video(predictor, sequences[1:], skip_first_and_last=False).num_frames == 1


def test_only_prompted_masks_are_looked_at(predictor: Any, sequence: Sequence) -> None:
    only_first = replace(sequence, masks=np.concatenate([sequence.masks[:1], 0 * sequence.masks[1:]]))
    assert np.array_equal(track_sequence(predictor, only_first), track_sequence(predictor, sequence))


@pytest.mark.parametrize("prompt", ["box", "click"])
def test_other_prompts(predictor: Any, sequence: Sequence, prompt: Any) -> None:
    predicted = track_sequence(predictor, sequence, prompt)
    assert set(np.unique(predicted)) <= {0, *sequence.object_ids}
    assert not np.array_equal(predicted, track_sequence(predictor, sequence))


def test_a_later_object_is_prompted_when_it_appears(predictor: Any, sequence: Sequence) -> None:
    predicted = track_sequence(predictor, late(sequence))
    assert not (predicted[:2] == 2).any()
    alone = replace(sequence, frames=sequence.frames[2:], masks=sequence.masks[2:], object_ids=(2,))
    # What is tracked from frame 2 on doesn't know the frames before.
    expected = track_sequence(predictor, alone) == 2
    assert ((predicted[2:] == 2) <= expected).all()
    others = replace(sequence, object_ids=tuple(i for i in sequence.object_ids if i != 2))
    first = track_sequence(predictor, others)
    assert np.array_equal(predicted[:2], first[:2])


def test_scores(predictor: Any, sequence: Sequence) -> None:
    other = generate_sequence("test", 1, num_frames=4)
    scores = evaluate_video(predictor, iter([sequence, other]))
    expected = [
        score
        for s in (sequence, other)
        for score in score_sequence(s.name, track_sequence(predictor, s), s.masks, object_ids=s.object_ids)
    ]
    assert list(scores.scores.objects) == expected
    assert scores.jf == pytest.approx(np.mean([score.jf for score in expected]))
    assert scores.jf == pytest.approx((scores.j + scores.f) / 2)
    assert (scores.num_videos, scores.num_frames, scores.prompt) == (2, 8, "mask")
    data = json.loads(json.dumps(scores.to_dict()))
    assert data["jf"] == scores.jf
    assert list(data["sequences"]) == ["test-00000", "test-00001"]
    assert data["seconds"] > 0


def test_any_class_and_mode(predictor: Any, sequence: Sequence) -> None:
    train = as_class(predictor, SAM2Train).train()
    train.image_encoder.eval()
    scores = evaluate_video(train, [sequence]).scores
    assert scores == evaluate_video(predictor, [sequence]).scores
    assert train.training
    assert train.memory_encoder.training
    assert not train.image_encoder.training
    predictor.eval()


def test_a_davis_folder(predictor: Any, sequence: Sequence, tmp_path: Path) -> None:
    write_sequence(sequence, tmp_path)
    (tmp_path / "Annotations" / sequence.name / "00002.png").unlink()
    scores = evaluate_video(predictor, read_davis(tmp_path))
    assert {score.sequence for score in scores.scores.objects} == {sequence.name}
    assert 0 <= scores.jf <= 100


def test_no_bars_but_ours(predictor: Any, sequence: Sequence, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_video(predictor, [sequence])
    assert capsys.readouterr().err == ""
    evaluate_video(predictor, [sequence], progress=True)
    shown = capsys.readouterr().err
    assert "videos, mask" in shown
    assert "propagate" not in shown


def test_bad_input_is_named(predictor: Any, sequence: Sequence) -> None:
    with pytest.raises(DataError, match="no sequences"):
        evaluate_video(predictor, [])
    with pytest.raises(DataError, match="prompt must be one of mask, box, click, 3-click, 5-click, got 'text'"):
        evaluate_video(predictor, [sequence], prompt="text")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="test-00000: no mask shows object 99"):
        evaluate_video(predictor, [replace(sequence, object_ids=(1, 99))])
