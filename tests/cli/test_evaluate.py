"""``qsam2 evaluate``: the figures of the evaluation, for people and for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qsam2_ao import load_qsam2
from qsam2_ao.data.davis import read_davis
from qsam2_ao.data.procedural import generate_split, write_sequence
from qsam2_ao.evaluation import evaluate_image, evaluate_video, image_samples


def test_a_davis_folder(run, packed_file: Path, tmp_path: Path):
    for sequence in generate_split("val", 2, num_frames=3):
        write_sequence(sequence, tmp_path)
    result = run("evaluate", packed_file, "--data", tmp_path, "--videos", 1, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    sequences = read_davis(tmp_path)[:1]
    model = load_qsam2(packed_file, target="auto")
    video = evaluate_video(model, sequences)
    image = evaluate_image(model, image_samples(sequences, per_sequence=2))
    assert report == {
        "model": str(packed_file), "data": str(tmp_path), "videos": 1,
        "j": video.j, "f": video.f, "jf": video.jf, "miou": image.miou,
    }  # fmt: skip


def test_the_embedded_split_for_people(run, packed_file: Path):
    result = run("evaluate", packed_file, "--videos", 1, "--frames", 3)
    assert result.exit_code == 0, result.stderr
    assert "J&F" in result.stdout
    assert "mIoU" in result.stdout
    assert "1 videos of embedded" in result.stdout


def test_a_short_video_needs_all_frames(run, packed_file: Path, tmp_path: Path):
    for sequence in generate_split("val", 1, num_frames=2):
        write_sequence(sequence, tmp_path)
    result = run("evaluate", packed_file, "--data", tmp_path, "--json")
    assert result.exit_code == 2
    assert "--all-frames" in result.stderr
    result = run("evaluate", packed_file, "--data", tmp_path, "--all-frames", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["videos"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("data", "message"), [("absent", "JPEGImages"), ("{empty}", "JPEGImages")])
def test_folders_that_are_no_data(run, packed_file: Path, tmp_path: Path, data: str, message: str):
    result = run("evaluate", packed_file, "--data", data.format(empty=tmp_path), "--json")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_short_sequence_is_named_before_any_is_tracked(run, packed_file: Path, tmp_path: Path):
    for number, sequence in enumerate(generate_split("val", 2, num_frames=3)):
        write_sequence(sequence, tmp_path)
        if number:
            (tmp_path / "Annotations" / sequence.name / "00002.png").unlink()
    result = run("evaluate", packed_file, "--data", tmp_path, "--json")
    assert result.exit_code == 2
    assert f"too few annotated frames in {sequence.name} (2)" in result.stderr
    assert "--all-frames" in result.stderr
    assert "it/s" not in result.stderr, "nothing was tracked"
    result = run("evaluate", packed_file, "--data", tmp_path, "--all-frames", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["videos"] == 2


def test_frames_are_of_embedded_videos(run, packed_file: Path, tmp_path: Path):
    result = run("evaluate", packed_file, "--data", tmp_path, "--frames", 3)
    assert result.exit_code == 2
    assert "--frames is for embedded videos" in result.stderr
