"""``qsam2 evaluate``: the figures of the evaluation, for people and for scripts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from qsam2_ao import load_qsam2
from qsam2_ao.data.datasets import open_dataset
from qsam2_ao.data.masks import read_ids
from qsam2_ao.data.procedural import generate_split, write_sequence
from qsam2_ao.evaluation import evaluate_image, evaluate_video, image_samples, score_folders
from qsam2_ao.evaluation.protocol import following


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    for sequence in generate_split("val", 3, num_frames=3):
        write_sequence(sequence, tmp_path / "DAVIS")
    lists = tmp_path / "DAVIS" / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("val-00001\nval-00000\n")
    (lists / "train.txt").write_text("val-00002\n")
    return tmp_path / "DAVIS"


def evaluated(run, *arguments: object) -> dict:
    result = run("evaluate", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_davis_folder(run, packed_file: Path, davis: Path):
    report = evaluated(run, packed_file, "--data", davis, "--videos", 1, "--per-object", "--image-prompt", "click",
                       "--image-prompt", "box")  # fmt: skip
    sequences = [open_dataset(davis, split="val")[0]]
    model = load_qsam2(packed_file, target="auto")
    video = evaluate_video(model, sequences, protocol="official", metric="davis")
    assert (report["j"], report["f"], report["jf"]) == (video.j, video.f, video.jf)
    with following(model, "official"):
        images = image_samples(sequences, per_sequence=2)
        for prompt in ("click", "box"):
            assert report["miou_by_prompt"][prompt] == pytest.approx(evaluate_image(model, images, prompt=prompt).miou)
    assert report["miou"] == report["miou_by_prompt"]["click"]
    assert report["sequences"] == video.scores.to_dict()["sequences"]
    assert report["model"] == str(packed_file)
    assert (report["data"], report["format"], report["split"]) == (str(davis), "davis", "val")
    assert (report["videos"], report["frames"], report["objects"]) == (1, 3, len(video.scores.objects))
    assert (report["protocol"], report["metric"], report["settings"]["prompt"]) == ("official", "davis", "mask")
    assert {"torch", "sam2", "qsam2_ao", "vos-benchmark"} <= report["versions"].keys()


def test_the_videos_and_protocols_that_are_named(run, packed_file: Path, davis: Path):
    names = ["--sequences", "val-00002,val-00001", "--split", "all"]
    report = evaluated(run, packed_file, "--data", davis, *names, "--prompt", "3-click", "--per-object",
                       "--protocol", "deployed", "--metric", "sav", "--autocast", "bf16")  # fmt: skip
    assert list(report["sequences"]) == ["val-00002", "val-00001"]
    assert (report["protocol"], report["metric"], report["settings"]["autocast"]) == ("deployed", "sav", "bf16")
    for option, value, known in (
        ("--prompt", "text", "mask, box, click"), ("--metric", "coco", "davis, sav"), ("--split", "test", "train"),
        ("--protocol", "mine", "official, deployed"), ("--autocast", "fp16", "none, bf16"), ("--format", "x", "davis"),
        ("--image-prompt", "mask", "box, click"), ("--sequences", "val-0000", "val-00000"),
    ):  # fmt: skip
        result = run("evaluate", packed_file, "--data", davis, option, value)
        assert result.exit_code == 2, option
        assert known in result.stderr, option


def test_results_are_kept_for_each_video_and_shared(run, packed_file: Path, davis: Path, tmp_path: Path):
    arguments = [packed_file, "--data", davis, "--split", "all", "--per-object"]
    alone = evaluated(run, *arguments)
    out = ["-o", tmp_path / "out"]
    result = run("evaluate", *arguments, *out, "--shard", "2/2", "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "of other shares still to come: 1 video (val-00001)" in result.stderr
    kept = sorted((tmp_path / "out" / "videos").rglob("val-*.json"))
    assert [path.name for path in kept] == ["val-00000.json", "val-00002.json"]
    times = [path.stat().st_mtime_ns for path in kept]
    shared = evaluated(run, *arguments, *out, "--shard", "1/2")
    assert shared == alone
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == alone
    again = run("evaluate", *arguments, *out, "--json")
    assert json.loads(again.stdout) == alone
    assert "evaluated before: 3 of 3 videos" in again.stderr
    assert [path.stat().st_mtime_ns for path in kept] == times
    result = run("evaluate", *arguments, "--shard", "1/2")
    assert result.exit_code == 2
    assert "need a common --output" in result.stderr


def test_masks_that_are_compared_with_are_not_replaced(run, packed_file: Path, davis: Path):
    before = {path: path.read_bytes() for path in davis.rglob("*.png")}
    result = run("evaluate", packed_file, "--data", davis, "--split", "all", "--save-masks", davis / "Annotations")
    assert result.exit_code == 2
    assert "holds masks that no evaluation wrote" in " ".join(result.stderr.split())
    assert {path: path.read_bytes() for path in davis.rglob("*.png")} == before


def test_saved_masks_score_the_same_and_need_no_annotation_to_score(
    run, packed_file: Path, davis: Path, tmp_path: Path
):
    arguments = [packed_file, "--data", davis, "--split", "all", "-o", tmp_path / "out"]
    masks = tmp_path / "masks"
    report = evaluated(run, *arguments, "--save-masks", masks)
    scores = score_folders(masks, davis / "Annotations", metric="davis")
    assert (report["jf"], report["masks"]) == (pytest.approx(scores.jf), str(masks))
    assert len(list(masks.rglob("*.png"))) == 9
    for path in (masks / "val-00001").iterdir():
        path.unlink()
    (masks / "val-00001").rmdir()
    again = run("evaluate", *arguments, "--save-masks", masks, "--json")
    assert "evaluated before: 2 of 3 videos" in again.stderr
    assert json.loads(again.stdout) == report
    assert len(list(masks.rglob("*.png"))) == 9
    # What another evaluation wrote to the same folder is not this one's.
    other = run("evaluate", *arguments, "--save-masks", masks, "--json", "--target", "packed")
    assert "evaluated before" not in other.stderr
    again = run("evaluate", *arguments, "--save-masks", masks, "--json")
    assert "evaluated before" not in again.stderr
    assert json.loads(again.stdout) == report
    for path in davis.rglob("Annotations/*/*.png"):
        if path.stem != "00000":
            path.unlink()
    report = evaluated(run, *arguments, "--save-masks", tmp_path / "first")
    assert report["jf"] is None
    assert report["not_scored"] == ["val-00000", "val-00001", "val-00002"]
    for path in masks.rglob("*.png"):
        assert (read_ids(path) == read_ids(tmp_path / "first" / path.relative_to(masks))).all()


def test_two_splits_are_two_evaluations(run, packed_file: Path, davis: Path, tmp_path: Path):
    (davis / "ImageSets" / "2016").mkdir()
    (davis / "ImageSets" / "2016" / "val.txt").write_text("val-00000\n")
    arguments = (packed_file, "--data", davis, "--sequences", "val-00000", "-o", tmp_path / "out", "--json")
    assert run("evaluate", *arguments, "--split", "2017/val").exit_code == 0
    other = run("evaluate", *arguments, "--split", "2016/val")
    assert other.exit_code == 0, other.stderr
    assert "evaluated before" not in other.stderr


def test_long_names_in_any_script_are_names(run, packed_file: Path, tmp_path: Path):
    (name,) = [sequence.name for sequence in generate_split("val", 1, num_frames=3)]
    for sequence in generate_split("val", 1, num_frames=3):
        write_sequence(sequence, tmp_path / "data")
    long = "\u732b" * 60
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / "data" / folder / name).rename(tmp_path / "data" / folder / long)
    report = evaluated(run, packed_file, "--data", tmp_path / "data", "-o", tmp_path / "out")
    assert report["videos"] == 1
    assert (
        "evaluated before: 1"
        in run("evaluate", packed_file, "--data", tmp_path / "data", "-o", tmp_path / "out").stderr
    )


def test_pictures_have_miou_alone(run, packed_file: Path, tmp_path: Path):
    for sequence in generate_split("val", 2, num_frames=1):
        for kind, picture in (("images", sequence.frames[0]), ("masks", sequence.masks[0])):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / kind / f"{sequence.name}.png")
    report = evaluated(run, packed_file, "--data", tmp_path, "--image-prompt", "3-click", "-o", tmp_path / "out")
    assert (report["videos"], report["objects"], report["jf"], report["not_scored"]) == (2, 0, None, [])
    assert 0 < report["miou"] == report["miou_by_prompt"]["3-click"] <= 100
    shown = run("evaluate", packed_file, "--data", tmp_path, "--image-prompt", "3-click")
    assert "2 pictures of" in shown.stdout
    assert "prompt 3-click" in shown.stdout
    assert "mIoU" in shown.stdout
    assert "no scores" not in shown.stdout
    refused = run("evaluate", packed_file, "--data", tmp_path, "--save-masks", tmp_path / "out")
    assert refused.exit_code == 2
    assert "--save-masks is for the masks of videos" in refused.stderr
    for options in (["--prompt", "mask"], ["--metric", "davis"], ["--all-frames"]):
        refused = run("evaluate", packed_file, "--data", tmp_path, *options)
        assert refused.exit_code == 2
        assert f"{options[0]} is for J&F of videos, and" in refused.stderr


@pytest.mark.slow
def test_torchrun_deals_the_videos(packed_file: Path, davis: Path, tmp_path: Path, run):
    arguments = ["evaluate", packed_file, "--data", davis, "--split", "all", "--json"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "qsam2_ao"]
    done = subprocess.run(
        list(map(str, [*launcher, *arguments, "-o", tmp_path / "out"])), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(run(*arguments).stdout)


def test_the_embedded_split_for_people(run, packed_file: Path):
    result = run("evaluate", packed_file, "--videos", 1, "--frames", 3)
    assert result.exit_code == 0, result.stderr
    assert "J&F" in result.stdout
    assert "mIoU" in result.stdout
    assert "1 video of embedded" in result.stdout
    result = run("evaluate", packed_file, "--format", "davis")
    assert result.exit_code == 2
    assert "embedded videos have no format davis" in result.stderr


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
@pytest.mark.parametrize(
    ("data", "message"), [("absent", "no such file or folder"), ("{empty}", "is not laid out like")]
)
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
    assert "evaluate:" not in result.stderr, "nothing was tracked"
    result = run("evaluate", packed_file, "--data", tmp_path, "--all-frames", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["videos"] == 2


def test_frames_are_of_embedded_videos(run, packed_file: Path, tmp_path: Path):
    result = run("evaluate", packed_file, "--data", tmp_path, "--frames", 3)
    assert result.exit_code == 2
    assert "--frames is for embedded videos" in result.stderr


def test_results_may_lie_among_the_data(run, packed_file: Path, davis: Path):
    arguments = [packed_file, "--data", davis, "--split", "all"]
    own = ["-o", davis / "results", "--save-masks", davis / "masks"]
    first = evaluated(run, *arguments, *own)
    again = run("evaluate", *arguments, *own, "--json")
    assert "evaluated before: 3 of 3 videos" in again.stderr
    assert json.loads(again.stdout) == first


def test_masks_of_an_earlier_evaluation_go(run, packed_file: Path, davis: Path, tmp_path: Path):
    arguments = [packed_file, "--split", "all", "--save-masks", tmp_path / "masks"]
    evaluated(run, *arguments, "--data", davis)
    for path in davis.rglob("*/val-00000/00002.*"):
        path.unlink()
    evaluated(run, *arguments, "--data", davis, "--all-frames")
    assert [path.name for path in sorted((tmp_path / "masks" / "val-00000").iterdir())] == ["00000.png", "00001.png"]


def test_brackets_and_bytes_in_names_are_no_markup_and_no_error(run, packed_file: Path, davis: Path):
    shutil.rmtree(davis / "ImageSets")
    data = davis.parent / "data[val]"
    davis.rename(data)
    for folder in ("JPEGImages", "Annotations"):
        (data / folder / "val-00000").rename(os.fsdecode(os.fsencode(data / folder) + b"/caf\xe9"))
    result = run("evaluate", packed_file, "--data", data)
    assert result.exit_code == 0, result.output
    assert "data[val]" in "".join(result.stdout.split())  # a long path goes over several lines
