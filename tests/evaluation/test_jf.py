from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vos_benchmark.benchmark import benchmark

from qsam2_ao.data.procedural import Sequence, generate_split, write_sequence
from qsam2_ao.errors import DataError
from qsam2_ao.evaluation import score_folders, score_sequence
from qsam2_ao.evaluation.jf import JFScores, ObjectScore


def wrong(sequence: Sequence) -> np.ndarray:
    """Plausible predictions: everything shifted, one object missing on one frame."""
    masks = np.roll(sequence.masks, 2, axis=2)
    masks[2][masks[2] == 1] = 0
    return masks


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for sequence in generate_split("test", 3, num_frames=5):
        write_sequence(sequence, tmp_path / "truth")
        (tmp_path / "predicted" / sequence.name).mkdir(parents=True)
        for t, mask in enumerate(wrong(sequence)):
            Image.fromarray(mask).save(tmp_path / "predicted" / sequence.name / f"{t:05d}.png")
    return tmp_path / "predicted", tmp_path / "truth" / "Annotations"


@pytest.mark.parametrize("skip", [True, False])
def test_equals_vos_benchmark(folders: tuple[Path, Path], skip: bool) -> None:
    predicted, truth = folders
    scores = score_folders(predicted, truth, skip_first_and_last=skip)
    [jf], [j], [f], [objects] = benchmark(
        [str(truth)], [str(predicted)], num_processes=1, verbose=False, skip_first_and_last=skip
    )
    assert scores.jf == pytest.approx(jf, abs=1e-9)
    assert scores.j == pytest.approx(j, abs=1e-9)
    assert scores.f == pytest.approx(f, abs=1e-9)
    assert 20 < scores.jf < 95
    theirs = {(name, i): js[i] for name, (js, _) in objects.items() for i in js}
    assert {(o.sequence, o.object_id): o.j for o in scores.objects} == theirs


def test_folder_and_memory_agree(folders: tuple[Path, Path]) -> None:
    scores = score_folders(*folders, sequences=["test-00001"])
    sequence = list(generate_split("test", 2, num_frames=5))[1]
    assert score_sequence(sequence.name, wrong(sequence), sequence.masks) == scores.objects


def test_perfect_and_empty_predictions() -> None:
    sequence = next(iter(generate_split("test", 1, num_frames=4)))
    perfect = score_sequence("s", sequence.masks, sequence.masks)
    assert [o.object_id for o in perfect] == list(sequence.object_ids)
    assert all(o.jf == 100 for o in perfect)
    nothing = score_sequence("s", np.zeros_like(sequence.masks), sequence.masks)
    assert all(o.jf < 1 for o in nothing)


def test_first_and_last_frames_do_not_count_by_default() -> None:
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:, 2:5, 2:5] = 1
    predicted = truth.copy()
    predicted[[0, -1]] = 0
    assert score_sequence("s", predicted, truth)[0].j == 100
    assert score_sequence("s", predicted, truth, skip_first_and_last=False)[0].j == 50


def test_void_pixels_count_for_nothing_as_in_daviss_metrics() -> None:
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 3, (5, 6, 6)), np.ones((1, 8, 8))).astype(np.uint8)
    predicted = np.roll(truth, 3, 2)
    unknown = np.kron(rng.random((5, 6, 6)) < 0.2, np.ones((1, 8, 8))).astype(bool)
    # db_eval_iou and db_eval_boundary take void away from both masks before anything else.
    expected = score_sequence("s", np.where(unknown, 0, predicted), np.where(unknown, 0, truth))
    marked = np.where(unknown, 255, truth).astype(np.uint8)
    assert score_sequence("s", predicted, marked) == expected
    assert score_sequence("s", predicted, marked, object_ids=[1, 2]) == expected
    assert [score.object_id for score in expected] == [1, 2]
    everywhere = np.where(rng.random(truth.shape) < 0.5, 255, predicted).astype(np.uint8)
    assert score_sequence("s", everywhere, truth) != score_sequence("s", predicted, truth), "void is no way out"


def test_an_only_or_named_id_of_255_is_an_object() -> None:
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:, 2:5, 2:5] = 255
    assert [(score.object_id, score.j) for score in score_sequence("s", truth, truth)] == [(255, 100)]
    truth[:, 6:] = 1
    assert [score.object_id for score in score_sequence("s", truth, truth)] == [1]
    assert [score.object_id for score in score_sequence("s", truth, truth, object_ids=[1, 255])] == [1, 255]


def test_black_and_white_folders_are_scored_whatever_their_numbers(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[4:12, 4:12] = 1
    for kind, factor in (("truth", 255), ("predicted", 1)):
        (tmp_path / kind / "s").mkdir(parents=True)
        for t in range(4):
            ending = "png" if kind == "truth" else "bmp"
            Image.fromarray(mask * np.uint8(factor)).save(tmp_path / kind / "s" / f"{t}.{ending}")
    assert score_folders(tmp_path / "predicted", tmp_path / "truth").jf == 100


def test_short_sequences_are_refused_before_any_is_read(folders: tuple[Path, Path]) -> None:
    predicted, truth = folders
    for path in [*(truth / "test-00002").iterdir()][2:]:
        path.unlink()
    (truth / "test-00000" / "00001.png").write_text("damaged")
    with pytest.raises(DataError, match=r"too few annotated frames in test-00002 \(2\): scoring needs 3.*--all-frames"):
        score_folders(predicted, truth)
    scores = score_folders(predicted, truth, sequences=["test-00002"], skip_first_and_last=False)
    assert scores.jf > 20


def test_other_objects_and_frames_without_annotation_do_not_count() -> None:
    truth = np.zeros((5, 8, 8), np.uint8)
    truth[:, :4], truth[:, 4:] = 1, 2
    predicted = truth.copy()
    predicted[truth == 2] = 3
    predicted[2] = 0
    annotated = [mask if t != 2 else None for t, mask in enumerate(truth)]
    scores = score_sequence("s", predicted, annotated, object_ids=[1])
    assert [(o.object_id, o.j) for o in scores] == [(1, 100.0)]
    assert score_sequence("s", predicted, truth, object_ids=[1])[0].j == pytest.approx(200 / 3)


def test_means_are_over_objects() -> None:
    scores = JFScores((ObjectScore("a", 1, 10, 30), ObjectScore("a", 2, 20, 40), ObjectScore("b", 1, 90, 80)), False)
    assert (scores.j, scores.f, scores.jf) == (40, 50, 45)
    assert scores.by_sequence()["a"].jf == 25
    data = scores.to_dict()
    assert data["jf"] == 45
    assert data["skip_first_and_last"] is False
    assert data["sequences"]["b"]["objects"]["1"] == {"jf": 85, "j": 90, "f": 80}


def test_bad_input_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    masks = np.ones((4, 8, 8), np.uint8)
    with pytest.raises(DataError, match="dog: 3 predicted masks for 4"):
        score_sequence("dog", masks[:3], masks)
    with pytest.raises(DataError, match=r"dog, frame 1: the predicted mask is \[8, 7\]"):
        score_sequence("dog", masks[:, :, :7], masks)
    with pytest.raises(DataError, match=r"too few annotated frames in dog \(2\).*--all-frames"):
        score_sequence("dog", masks[:2], masks[:2])
    predicted, truth = folders
    with pytest.raises(DataError, match="nowhere: no such folder"):
        score_folders(predicted, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no sequences"):
        score_folders(predicted, tmp_path / "empty")
    (predicted / "test-00002" / "00001.png").unlink()
    with pytest.raises(DataError, match=r"test-00002/00001\.png: no such file"):
        score_folders(predicted, truth)
    blank = tmp_path / "blank" / "s"
    blank.mkdir(parents=True)
    for t in range(3):
        Image.new("L", (8, 8)).save(blank / f"{t}.png")
    with pytest.raises(DataError, match="hold no objects"):
        score_folders(blank.parent, blank.parent)


def labelled(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Annotation and prediction of seven frames with an object that moves, and another as the name says."""
    rows, columns = np.mgrid[:48, :64]

    def disc(t: int, y: int, x: int, radius: int) -> np.ndarray:
        return (rows - y - t) ** 2 + (columns - x - 2 * t) ** 2 <= radius**2

    truth = np.zeros((7, 48, 64), np.uint8)
    predicted = np.zeros_like(truth)
    for t in range(7):
        truth[t][disc(t, 15, 14, 8)] = 1
        predicted[t][disc(t, 16, 15, 8)] = 1
        if name in ("plain", "void", "gap"):
            truth[t][disc(t, 32, 40, 6)] = 3 if name == "gap" else 2
            predicted[t][disc(t, 31, 40, 6)] = 3 if name == "gap" else 2
        if name == "void":
            truth[t][12:20, 20:28] = truth[t][:3] = 255
        if name == "leaves":
            truth[t, 30:40, 40:50] = 2 * (t < 3)
            predicted[t, 31:40, 40:50] = 2 * (t < 5)
        if name in ("vanishes", "goes"):
            truth[t, 30:40, 40:50] = 2 * (t == 0)
            predicted[t, 30:40, 40:50] = 2 * (t < (3 if name == "vanishes" else 1))
    return truth, predicted


#: What davis2017-evaluation (commit ac7c43fc, semi-supervised) says of those masks, written as PNG files in DAVIS's
#: layout: ``DAVISEvaluation(folder, "semi-supervised", "val").evaluate(results)``, J and F by object.
_DAVIS = {
    "plain": {1: (0.7909090909090909, 0.8676470588235293), 2: (0.7936507936507936, 1)},
    "void": {1: (0.5802278063468898, 0.7319523677153258), 2: (0.7936507936507936, 1)},
    "vanishes": {1: (0.7909090909090909, 0.8676470588235293), 2: (0.6, 0.6)},
    "goes": {1: (0.7909090909090909, 0.8676470588235293), 2: (1, 1)},
    "leaves": {1: (0.7909090909090909, 0.8676470588235293), 2: (0.56, 0.6)},
    "gap": {1: (0.7909090909090909, 0.8676470588235293), 2: (1, 1), 3: (0.7936507936507936, 1)},
}
#: Likewise SA-V's sav_evaluator.py (facebookresearch/sam2, commit 2b90b9f5) on the same folders, J and F by object, in
#: percent to one decimal as it prints them. Of "void" it takes 255 for an object.
_SAV = {
    "plain": {1: (79.1, 86.8), 2: (79.4, 100.0)},
    "vanishes": {1: (79.1, 86.8)},
    "goes": {1: (79.1, 86.8)},
    "leaves": {1: (79.1, 86.8), 2: (56.0, 60.0)},
    "gap": {1: (79.1, 86.8), 3: (79.4, 100.0)},
}


def write_labelled(root: Path) -> None:
    for name in _DAVIS:
        for kind, masks in zip(("truth", "predicted"), labelled(name), strict=True):
            (root / kind / name).mkdir(parents=True)
            for t, mask in enumerate(masks):
                Image.fromarray(mask).save(root / kind / name / f"{t:05d}.png")


def test_the_metric_davis_is_davis2017_evaluations(tmp_path: Path) -> None:
    write_labelled(tmp_path)
    scores = score_folders(tmp_path / "predicted", tmp_path / "truth", metric="davis")
    found = {(score.sequence, score.object_id): (score.j, score.f) for score in scores.objects}
    expected = {(name, i): (100 * j, 100 * f) for name, by_id in _DAVIS.items() for i, (j, f) in by_id.items()}
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, abs=1e-9)
    assert scores.jf == pytest.approx(82.09966655260653, abs=1e-9)


def test_the_metric_sav_is_sav_evaluators() -> None:
    for name, by_id in _SAV.items():
        truth, predicted = labelled(name)
        scores = score_sequence(name, predicted, truth, metric="sav")
        assert {s.object_id: (round(s.j, 1), round(s.f, 1)) for s in scores} == by_id


def test_an_ignored_label_counts_for_nothing_whatever_the_metric() -> None:
    truth, predicted = labelled("void")
    expected = score_sequence("s", np.where(truth == 255, 0, predicted), np.where(truth == 255, 0, truth))
    for metric in ("davis", "sav"):
        assert score_sequence("s", predicted, truth, metric=metric, ignore=255) == expected
    assert score_sequence("s", predicted, truth, metric="davis") != expected
    without_2 = score_sequence("s", predicted, truth, metric="davis", ignore=2)
    assert [score.object_id for score in without_2] == [1]
    with pytest.raises(DataError, match="ignore must be a label from 1 to 255, got 0"):
        score_sequence("s", predicted, truth, ignore=0)
    with pytest.raises(DataError, match="metric must be one of davis, sav, got 'coco'"):
        score_sequence("s", predicted, truth, metric="coco")  # type: ignore[arg-type]


def test_of_objects_that_davis_does_not_know_only_the_named_count() -> None:
    truth, predicted = labelled("leaves")
    truth[0][truth[0] == 2] = 0
    assert [score.object_id for score in score_sequence("s", predicted, truth, metric="davis")] == [1]
    assert [score.object_id for score in score_sequence("s", predicted, truth, metric="sav")] == [1, 2]
    assert score_sequence("s", predicted, truth, metric="davis", object_ids=[2]) == ()
