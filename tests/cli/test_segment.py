"""``qsam2 segment``: the mask of SAM2's predictor, as files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sam2.sam2_image_predictor import SAM2ImagePredictor

from qsam2_ao import load_qsam2
from qsam2_ao.data.decoding import max_pixels
from qsam2_ao.data.pictures import read_ids


def test_a_box_gives_the_predictors_mask(run, packed_file: Path, picture: Path, tmp_path: Path):
    result = run("segment", packed_file, picture, "--box", "10,20,60,80", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    predictor = SAM2ImagePredictor(load_qsam2(packed_file, target="auto"))
    predictor.set_image(Image.open(picture))
    masks, scores, _ = predictor.predict(box=np.array([10, 20, 60, 80.0]), multimask_output=False)
    np.testing.assert_array_equal(read_ids(report["mask"]), masks[0])
    assert report["objects"] == [{"id": 1, "score": pytest.approx(float(scores[0])), "pixels": int(masks[0].sum())}]
    assert Image.open(report["overlay"]).size == (96, 96)


def test_several_objects_keep_their_ids(run, packed_file: Path, picture: Path, tmp_path: Path):
    result = run(
        "segment", packed_file, picture, "--point", "2:30,30", "--point", "2:5,90,0", "--box", "9:50,50,90,90",
        "-o", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "object 2:" in result.stdout
    assert "object 9:" in result.stdout
    assert set(np.unique(read_ids(tmp_path / "picture_mask.png"))) <= {0, 2, 9}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png", "--point", "1,1"], "absent.png: no such file"),
        (["{picture}"], "say what to look for"),
        (["{picture}", "--point", "1000,1"], "outside of the picture, which is 96 x 96"),
        (["{text}", "--point", "1,1"], "cannot be read as a picture"),
        (["{picture}", "--point", "1,1", "-o", "{text}/below"], "cannot write"),
        (["{clip}", "--point", "1,1"], "clip.mp4 is a clip and no picture; qsam2 track follows objects through it"),
        (["{picture}", "--point", "1,1", "--device", "gpu"], "--device gpu: there is no device"),
    ],
)
def test_bad_input_is_named_on_stderr(
    run, packed_file: Path, picture: Path, tmp_path: Path, arguments: list[str], message: str
):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    places = {"picture": picture, "text": text, "clip": tmp_path / "clip.mp4"}
    result = run("segment", packed_file, *[argument.format(**places) for argument in arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in " ".join(result.stderr.split())


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_leaves_nothing(run, full_disk, packed_file: Path, picture: Path, tmp_path: Path):
    with full_disk(100):
        result = run("segment", packed_file, picture, "--point", "9,9", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_mask_and_a_file_of_prompts(run, packed_file: Path, picture: Path, tmp_path: Path):
    mask = np.zeros((96, 96), np.uint8)
    mask[20:70, 30:80] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "prompts.json").write_text('[{"object": 3, "mask": "mask.png"}, {"object": 4, "box": [1, 2, 30, 40]}]')
    result = run("segment", packed_file, picture, "--prompts", tmp_path / "prompts.json", "-o", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    assert [found["id"] for found in json.loads(result.stdout)["objects"]] == [3, 4]
    again = run("segment", packed_file, picture, "--mask", f"3:{tmp_path / 'mask.png'}", "-o", tmp_path, "--json")
    assert json.loads(again.stdout)["objects"][0]["score"] == json.loads(result.stdout)["objects"][0]["score"]


def test_annotations_instead_of_pictures(run, packed_file: Path, picture: Path, tmp_path: Path):
    box = ["--box", "10,20,60,80", "-o", tmp_path / "out"]
    result = run("segment", packed_file, picture, *box, "--save", "rle", "--save", "polygons", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["mask"], report["overlay"]) == (None, None)
    for kind in ("rle", "polygons"):
        [annotation] = json.loads(Path(report[kind]).read_text())["annotations"]
        assert annotation["area"] == report["objects"][0]["pixels"]
    assert len([*(tmp_path / "out").iterdir()]) == 2
    result = run("segment", packed_file, picture, *box, "--save", "gif")
    assert result.exit_code == 2
    assert "polygons" in result.stderr


def test_a_deep_picture_and_one_that_is_too_large(run, packed_file: Path, tmp_path: Path, monkeypatch):
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(tmp_path / "deep.tif")
    result = run("segment", packed_file, tmp_path / "deep.tif", "--box", "10,20,60,60", "-o", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert np.asarray(Image.open(tmp_path / "deep_overlay.png")).max() > 200
    monkeypatch.setenv("QSAM2_MAX_PIXELS", "1000")
    result = run("segment", packed_file, tmp_path / "deep.tif", "--box", "10,20,60,60", "-o", tmp_path)
    assert result.exit_code == 2
    assert "QSAM2_MAX_PIXELS=4096" in result.stderr.replace("\n", "")
    result = run(
        "segment", packed_file, tmp_path / "deep.tif", "--box", "10,20,60,60", "-o", tmp_path, "--max-pixels", 4096
    )
    assert result.exit_code == 0, result.stderr
    assert max_pixels() == 1000


def test_places_that_cannot_be_written_are_named_before_the_model_is_loaded(run, picture: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "out" / "picture_mask.png").mkdir(parents=True)
    for output, message in (
        (tmp_path / "file", "is a file, not a folder"),
        (tmp_path / "file" / "below", "is a file, not a folder"),
        (tmp_path / "mask.png", "a folder is written, not a .png file"),
        (tmp_path / "out", "a folder has this name"),
        ("/proc/out", "no file can be made in /proc"),
    ):
        result = run("segment", tmp_path / "absent.safetensors", picture, "--point", "9,9", "-o", output)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
    saved = ("--save", "overlay", "-o", tmp_path / "out")  # what is not written cannot be in the way
    result = run("segment", tmp_path / "absent.safetensors", picture, "--point", "9,9", *saved)
    assert "absent.safetensors" in result.stderr


def test_a_mask_that_is_read_is_not_replaced(run, packed_file: Path, picture: Path, tmp_path: Path):
    path = tmp_path / f"{picture.stem}_mask.png"
    Image.fromarray(np.full((96, 96), 255, np.uint8)).save(path)
    before = path.read_bytes()
    (tmp_path / "prompts.json").write_text(json.dumps([{"object": 3, "mask": path.name}]))
    for prompt in (["--mask", path], ["--prompts", tmp_path / "prompts.json"]):
        result = run("segment", packed_file, picture, *prompt, "-o", tmp_path)
        assert result.exit_code == 2
        assert f"{path} is read, and the results would replace it" in result.stderr.replace("\n", " ")
    assert path.read_bytes() == before


def test_a_data_sets_mask_beside_the_picture_is_not_replaced(run, packed_file: Path, picture: Path, tmp_path: Path):
    own = Path(shutil.copy(picture, tmp_path / "own.png"))
    line = ("segment", packed_file, own, "--point", "40,40", "-o", tmp_path)
    for _ in range(2):  # the program's own masks are
        assert run(*line).exit_code == 0
    mask = tmp_path / "own_mask.png"
    Image.fromarray(np.full((96, 96), 255, np.uint8)).save(mask)
    before = mask.read_bytes()
    result = run(*line)
    assert result.exit_code == 2
    assert "own_mask.png was not written by this program, and would be replaced" in " ".join(result.stderr.split())
    assert mask.read_bytes() == before


def test_nothing_is_removed_from_a_picture(run, packed_file: Path, picture: Path, tmp_path: Path):
    items = [{"object": 1, "box": [1, 2, 30, 40]}, {"object": 2, "remove": True}]
    (tmp_path / "prompts.json").write_text(json.dumps(items))
    result = run("segment", packed_file, picture, "--prompts", tmp_path / "prompts.json", "-o", tmp_path)
    assert result.exit_code == 2
    assert "object 2 cannot be removed" in result.stderr
