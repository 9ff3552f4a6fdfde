"""What a comparison says is what the predictors find."""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from qsam2_ao import load_embedded, load_qsam2
from qsam2_ao.comparison import (
    PromptPlan,
    compare_models,
    read_comparison,
    save_comparison,
    shipped_subjects,
    user_subjects,
)
from qsam2_ao.comparison.subjects import grid_prompts
from qsam2_ao.data.procedural import Sequence
from qsam2_ao.errors import CheckpointError, DataError
from qsam2_ao.evaluation.miou import mask_iou
from qsam2_ao.segmentation import StreamingPredictor, segment_image


def test_agreement_is_the_iou_of_the_masks(packed_file: Path, picture: Path, clip: Path, sequence: Sequence, tmp_path):
    subjects = user_subjects([picture], [clip], PromptPlan(grid=2))
    found, sheet = compare_models(["embedded", f"{packed_file}@packed"], subjects, memory=False, progress=False)

    one, other = load_embedded(), load_qsam2(packed_file)
    prompts = grid_prompts((96, 72), 2)
    logits = [segment_image(model, Image.fromarray(sequence.frames[0]), prompts)[0] for model in (one, other)]
    ious = [float(mask_iou(logits[0][number] > 0, logits[1][number] > 0)) for number in prompts]
    for model in (one, other):
        stream = StreamingPredictor(model, num_frames=3)
        stream.start(sequence.frames[0])
        answers = [stream.prompt(1, **grid_prompts((96, 72), 1)[1].arrays())]
        answers += [stream.step(frame) for frame in sequence.frames[1:]]
        logits.append([answer.logits[1] for answer in answers])
    ious += [float(mask_iou(a > 0, b > 0)) for a, b in zip(logits[2], logits[3], strict=True)]

    first, second = found.models
    assert (first.kind, second.kind, second.target) == ("float", "w4a8", "packed")
    assert first.iou == 100
    assert second.iou == pytest.approx(100 * np.mean(ious))
    assert second.worst_iou == pytest.approx(100 * min(ious))
    assert second.file_bytes == packed_file.stat().st_size
    assert second.picture_ms > 0
    assert second.frame_ms > 0
    assert first.frame_speed == 1
    assert [(s.kind, s.size, s.frames, s.objects, s.masks) for s in found.subjects] == [
        ("picture", (96, 72), 1, 4, 4),
        ("clip", (96, 72), 3, 1, 3),
    ]
    assert found.described == "1 picture and 1 clip, 7 masks"
    assert found.cases[0].least == pytest.approx(100 * min(ious))
    assert [case.least for case in found.cases] == sorted(case.least for case in found.cases)

    out = io.StringIO()
    Console(file=out, width=60).print(found)
    assert re.search(r"embedded . +random-w4a8", out.getvalue()), "a narrow terminal has a column for each model"
    assert re.search(r"IoU % +. +- . +\d+\.\d ", out.getvalue())
    results, drawn = save_comparison(found, sheet, tmp_path / "out")
    assert read_comparison(results) == found
    assert Image.open(drawn).height > 240
    results.write_text("[]")
    with pytest.raises(CheckpointError, match=r"is no result of qsam2 compare"):
        read_comparison(results)


def test_the_same_weights_agree_and_there_is_nothing_to_show(packed_file: Path, picture: Path, tmp_path: Path):
    copy = tmp_path / "copy.safetensors"
    shutil.copy(packed_file, copy)
    subjects = user_subjects([picture], [], PromptPlan(grid=1, kind="box"))
    found, sheet = compare_models([str(packed_file), str(copy)], subjects, memory=False, progress=False)
    assert found.models[1].iou == found.models[1].close == 100
    assert found.cases == ()
    assert sheet is None
    save_comparison(found, Image.new("RGB", (2, 2)), tmp_path)
    _, picture_path = save_comparison(found, sheet, tmp_path)
    assert picture_path is None
    assert not (tmp_path / "contact_sheet.png").exists(), "an old sheet would be taken for this comparison's"


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(packed_file: Path, picture: Path):
    subjects = user_subjects([picture], [], PromptPlan(grid=1))
    found, _ = compare_models(["embedded", str(packed_file)], subjects, progress=False)
    assert all(50e6 < model.peak_bytes < 4e9 for model in found.models)


def test_nothing_to_compare_on(packed_file: Path):
    with pytest.raises(DataError, match="no picture and no clip"):
        compare_models(["embedded", str(packed_file)], [])


def test_without_data_there_are_photographs_and_scenes_of_the_models_size(packed_file: Path, capsys):
    pytest.importorskip("skimage")
    found, _ = compare_models(["embedded", str(packed_file)], memory=False, progress=False)
    assert [(s.kind, s.size) for s in found.subjects if s.name.startswith("procedural")] == [("clip", (96, 96))] * 2
    assert {s.name.split()[0] for s in found.subjects if s.kind == "picture"} == {"photograph"}
    said = capsys.readouterr().err
    assert "scikit-image's photographs (coins, " in said
    assert "procedural scenes of 96 x 96 pixels" in said


def test_without_photographs_there_are_scenes(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    subjects = shipped_subjects(40)
    assert {subject.open()[0][0].shape for subject in subjects} == {(40, 40, 3)}
    assert {subject.kind for subject in subjects} == {"picture", "clip"}
    said = capsys.readouterr().err
    assert "procedural scenes of 40 x 40 pixels, and without photographs, which pip install" in said


def test_the_smallest_picture_has_a_grid_of_boxes():
    for prompt in grid_prompts((3, 3), 4, "box").values():
        prompt.check((3, 3))


def test_the_shipped_subjects_have_prompts_that_fit():
    for subject in shipped_subjects():
        frames, schedule = subject.open()
        size = (frames[0].shape[1], frames[0].shape[0])
        assert schedule[0]
        for prompt in schedule[0].values():
            prompt.check(size)
