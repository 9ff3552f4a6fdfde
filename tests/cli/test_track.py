"""``qsam2 track``: the masks of SAM2's video predictor, as files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsam2_ao import load_qsam2
from qsam2_ao.data.pictures import read_ids
from qsam2_ao.data.procedural import Sequence, write_sequence
from qsam2_ao.data.video import frame_rate, read_frames, write_video
from qsam2_ao.reporting.label_maps import save_label_map
from qsam2_ao.workflow.track_many import find_videos


@pytest.fixture
def davis(tmp_path: Path, sequence: Sequence) -> Path:
    write_sequence(sequence, tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_folder_and_a_mask_give_the_predictors_masks(run, packed_file: Path, davis: Path, sequence: Sequence):
    frames, masks = (davis / kind / sequence.name for kind in ("JPEGImages", "Annotations"))
    result = run("track", packed_file, frames, "--mask", masks / "00000.png", "-o", davis / "out", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert [found["id"] for found in report["objects"]] == list(sequence.object_ids)
    assert report["frames"] == 3

    predictor = load_qsam2(packed_file, target="auto")
    state = predictor.init_state(str(frames))
    for object_id in sequence.object_ids:
        predictor.add_new_mask(state, 0, object_id, sequence.masks[0] == object_id)
    for frame, object_ids, logits in predictor.propagate_in_video(state):
        values = logits[:, 0].numpy()
        expected = np.where(values.max(0) > 0, np.array(object_ids)[values.argmax(0)], 0)
        np.testing.assert_array_equal(read_ids(davis / "out" / "masks" / f"{frame:05d}.png"), expected)
    assert len(list(read_frames(davis / "out" / "overlay.mp4"))) == 3


def test_a_video_file_and_clicks_on_two_objects(run, packed_file: Path, tmp_path: Path, sequence: Sequence):
    write_video(tmp_path / "clip.mp4", sequence.frames, fps=12)
    result = run(
        "track", packed_file, tmp_path / "clip.mp4", "--point", "20,20", "--point", "70,80,0",
        "--box", "4:30,30,90,90", "--max-frames", 2, "-o", tmp_path,
        "--save", "masks", "--save", "overlay", "--save", "polygons",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "object 1: visible on" in result.stdout
    assert "object 4: visible on" in result.stdout
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["00000.png", "00001.png"]
    assert frame_rate(tmp_path / "overlay.mp4") == 12
    images = json.loads((tmp_path / "polygons.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["00000.jpg", "00001.jpg"]
    assert f"{tmp_path / 'polygons.json'}" in result.stdout.replace("\n", "")


def test_a_mask_of_the_wrong_size_is_refused(run, packed_file: Path, davis: Path, sequence: Sequence, tmp_path: Path):
    Image.new("L", (50, 40), 255).save(tmp_path / "small.png")
    frames = davis / "JPEGImages" / sequence.name
    result = run("track", packed_file, frames, "--mask", tmp_path / "small.png", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "small.png is 50 x 40 pixels but the picture is 96 x 96" in result.stderr
    assert not (tmp_path / "out").exists()


def test_empty_and_absent_clips_are_refused(run, packed_file: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent.mp4"):
        result = run("track", packed_file, tmp_path / name, "--point", "1,1")
        assert result.exit_code == 2
        assert name in result.stderr


def test_prompts_on_later_frames_from_a_file(run, packed_file: Path, davis: Path, sequence: Sequence):
    frames, mask = (davis / kind / sequence.name for kind in ("JPEGImages", "Annotations"))
    prompts = [
        {"frame": 1, "object": 5, "mask": str(mask / "00001.png")},
        {"frame": 2, "object": 5, "points": [[20, 20]], "labels": [0]},
    ]
    (davis / "prompts.json").write_text(json.dumps(prompts))
    arguments = ("track", packed_file, frames, "--prompts", davis / "prompts.json", "-o", davis / "out")
    result = run(*arguments, "--point", "1@2:60,60", "--remove", "2@2", "--direction", "both", "--json")
    assert result.exit_code == 0, result.stderr
    assert [found["id"] for found in json.loads(result.stdout)["objects"]] == [2, 5]
    # A mask passes through a quarter of the network's resolution.
    assert ((read_ids(davis / "out" / "masks" / "00001.png") == 5) == (sequence.masks[1] > 0)).mean() > 0.95
    assert read_ids(davis / "out" / "masks" / "00000.png").shape == (96, 96)
    prompts[1]["labels"] = [1, 0]
    (davis / "prompts.json").write_text(json.dumps(prompts))
    result = run(*arguments)
    assert result.exit_code == 2
    assert "prompts.json, item 2: labels has shape [2], wanted [1]" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "3@1,1"], "frame 3 is beyond the clip, which has 3 frames, 0 to 2"),
        (["--point", "2@1,1", "--max-frames", "2"], "frame 2 is beyond the clip, which has 2 frames"),
        (["--point", "1,1", "--remove", "2@4"], "frame 2, object 4: it cannot be removed"),
        (["--prompts", "{folder}/absent.json"], "absent.json cannot be read"),
    ],
)
def test_prompts_that_do_not_fit_the_clip(
    run, packed_file: Path, davis: Path, sequence: Sequence, arguments: list[str], message: str
):
    frames = davis / "JPEGImages" / sequence.name
    result = run("track", packed_file, frames, "-o", davis / "out", *[a.format(folder=davis) for a in arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (davis / "out").exists()


def test_places_that_cannot_be_written_are_named_before_the_clip_is_read(run, tmp_path: Path):
    (tmp_path / "out" / "overlay.mp4").mkdir(parents=True)
    (tmp_path / "out" / "masks").touch()
    for output, save, message in (
        (tmp_path / "out", "overlay", "a folder has this name"),
        (tmp_path / "out", "masks", "masks is a file, not a folder"),
        (tmp_path / "masks.mp4", "overlay", "a folder is written, not a .mp4 file"),
        ("/proc/out", "rle", "no file can be made in /proc"),
    ):
        arguments = ("absent.safetensors", "absent.mp4", "--point", "9,9", "-o", output, "--save", save)
        result = run("track", *arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())


@pytest.fixture
def clips(tmp_path: Path, sequence: Sequence) -> tuple[Path, Path]:
    """A folder of three videos, and one of their prompts."""
    videos, prompts = tmp_path / "clips", tmp_path / "prompts"
    write_sequence(sequence, tmp_path / "davis")
    for name in ("a", "b"):
        shutil.copytree(tmp_path / "davis" / "JPEGImages" / sequence.name, videos / name)
    write_video(videos / "c.mp4", sequence.frames, fps=12)
    (videos / "notes.txt").write_text("no video")
    shutil.copytree(tmp_path / "davis" / "Annotations" / sequence.name, prompts / "a")
    for name in ("b", "c"):
        (prompts / f"{name}.json").write_text(json.dumps([{"frame": 1, "object": 4, "box": [30, 30, 90, 90]}]))
    return videos, prompts


def test_a_folder_of_videos_goes_on_after_the_last_finished_one(
    run, packed_file: Path, clips: tuple[Path, Path], sequence: Sequence, tmp_path: Path
):
    videos, prompts = clips
    arguments = (
        "track",
        packed_file,
        videos,
        "--prompts",
        prompts,
        "-o",
        tmp_path / "out",
        "--save",
        "masks",
        "--json",
    )
    result = run(*arguments, "--shard", "1/2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "of other shares still to come: 2 videos (a, c)" in result.stderr
    done = (tmp_path / "out" / "b" / "tracked.json").stat().st_mtime_ns
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "tracked before: 1 of 3 videos" in result.stderr
    assert (tmp_path / "out" / "b" / "tracked.json").stat().st_mtime_ns == done
    report = json.loads(result.stdout)["videos"]
    assert [Path(video["video"]).name for video in report] == ["a", "b", "c.mp4"]
    assert [found["id"] for found in report[0]["objects"]] == list(sequence.object_ids)
    alone = run("track", packed_file, videos / "a", "--mask", prompts / "a" / "00000.png", "-o", tmp_path / "alone")
    assert alone.exit_code == 0, alone.stderr
    for path in (tmp_path / "alone" / "masks").iterdir():
        assert np.array_equal(read_ids(path), read_ids(tmp_path / "out" / "a" / "masks" / path.name))
    (prompts / "b.json").write_text(json.dumps([{"object": 2, "points": [[40, 40]]}]))
    result = run(*arguments)
    assert "tracked before: 2 of 3 videos" in result.stderr
    assert [found["id"] for found in json.loads(result.stdout)["videos"][1]["objects"]] == [2]
    mask = np.zeros(sequence.frames[0].shape[:2], np.uint8)
    mask[30:60, 30:60] = 1
    save_label_map(mask, prompts / "own.png")
    (prompts / "b.json").write_text(json.dumps([{"object": 2, "mask": "own.png"}]))
    assert "tracked before: 2 of 3 videos" in run(*arguments).stderr
    save_label_map(mask.T.copy(), prompts / "own.png")
    os.utime(prompts / "own.png", (1, 1))
    assert "tracked before: 2 of 3 videos" in run(*arguments).stderr


def test_a_result_goes_before_its_video_is_tracked_again(
    run, packed_file: Path, clips: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    videos, prompts = clips
    arguments = ("track", packed_file, videos, "--prompts", prompts, "-o", tmp_path / "out", "--save", "masks")
    assert run(*arguments).exit_code == 0

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("in the first video")

    monkeypatch.setattr("qsam2_ao.workflow.track_many.track_file", interrupted)
    assert run(*arguments, "--direction", "both").exit_code == 130
    monkeypatch.undo()
    assert "tracked before: 2 of 3 videos" in run(*arguments).stderr
    (tmp_path / "out" / "a" / "overlay.mp4").touch()
    # Of fewer frames, too: what was tracked before is known to be its own.
    assert run(*arguments, "--max-frames", 3).exit_code == 0
    assert len(list((tmp_path / "out" / "a" / "masks").iterdir())) == 3
    assert not (tmp_path / "out" / "a" / "overlay.mp4").exists()


def test_videos_go_by_their_endings_on_every_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = ("a.mkv", "b.ts", "c.MTS", "d.3gp", "e.m2ts", "f.flv")
    for name in (*names, "notes.txt", "g.mjpeg", "h.qt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_videos(tmp_path).values()] == list(names)
    assert "h.qt is left out" in capsys.readouterr().err


def test_prompts_of_many_videos_are_checked_first(run, packed_file: Path, clips: tuple[Path, Path], tmp_path: Path):
    videos, prompts = clips
    (prompts / "c.json").write_text(json.dumps([{"points": [[4000, 1]]}]))
    result = run("track", packed_file, videos, "-o", tmp_path / "out", "--prompts", prompts)
    assert result.exit_code == 2
    assert "c.json, item 1" in result.stderr
    (prompts / "c.json").unlink()
    arguments = ("track", packed_file, videos, "-o", tmp_path / "out")
    for extra, message in (
        (["--prompts", prompts], "has no prompts of c: add c.json"),
        (["--point", "1,1"], "holds several videos: give their prompts in a folder"),
        (["--prompts", prompts / "b.json"], "is no folder, and"),
    ):
        result = run(*arguments, *extra)
        assert result.exit_code == 2
        assert message in result.stderr
    result = run("track", packed_file, videos / "a", "--point", "1,1", "--shard", "0/2")
    assert result.exit_code == 2
    assert "is one: start one process" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_mask_that_is_read_is_not_replaced(run, packed_file: Path, davis: Path, sequence: Sequence, tmp_path: Path):
    frames, annotations = (davis / kind / sequence.name for kind in ("JPEGImages", "Annotations"))
    mask = tmp_path / "out" / "masks" / "00002.png"
    mask.parent.mkdir(parents=True)
    mask.write_bytes((annotations / "00002.png").read_bytes())
    before = mask.read_bytes()
    result = run("track", packed_file, frames, "--mask", f"2@{mask}", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "is read, and the results would replace it" in result.stderr.replace("\n", " ")
    assert mask.read_bytes() == before


def test_results_among_what_is_read_are_finished_and_replace_no_prompt(
    run, packed_file: Path, clips: tuple[Path, Path], tmp_path: Path
):
    videos, prompts = clips
    (videos / "c.mp4").rename(videos / "c.avi.mp4")  # a video's name, whatever it looks like
    (prompts / "c.json").rename(prompts / "c.avi.json")
    for output in (videos, prompts):
        arguments = ("track", packed_file, videos, "--prompts", prompts, "-o", output, "--save", "masks", "--json")
        result = run(*arguments)
        assert result.exit_code == 0, result.stderr
        assert len(json.loads(result.stdout)["videos"]) == 3
        assert "tracked before: 3 of 3 videos" in run(*arguments).stderr
    mask = prompts / "b" / "masks" / "00001.png"
    before = mask.read_bytes()
    (prompts / "b.json").write_text(json.dumps([{"frame": 1, "object": 4, "mask": "b/masks/00001.png"}]))
    for form in ("masks", "overlay"):
        result = run("track", packed_file, videos, "--prompts", prompts, "-o", prompts, "--save", form)
        assert result.exit_code == 2
        assert "is read, and the results would replace it" in " ".join(result.stderr.split())
        assert mask.read_bytes() == before


def test_a_colon_in_a_name_is_no_protocol(
    run, packed_file: Path, sequence: Sequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_video("10:30.mp4", sequence.frames[:2], fps=12)
    result = run("track", packed_file, "10:30.mp4", "--point", "40,40", "-o", "out:1", "--save", "overlay")
    assert result.exit_code == 0, result.stderr
    assert len(list(read_frames(tmp_path / "out:1" / "overlay.mp4"))) == 2
