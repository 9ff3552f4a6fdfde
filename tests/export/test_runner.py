"""Images and videos by exported files, against SAM2's predictors on the model that they come from."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_parts import check_files, check_quantized_layers, in_onnx_runtime, in_openvino
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torch._inductor import config as inductor_config

from qsam2_ao import load_qsam2
from qsam2_ao.compat.quiet import propagate_quietly
from qsam2_ao.data.pictures import read_ids
from qsam2_ao.data.procedural import Sequence, generate_sequence
from qsam2_ao.errors import CheckpointError, DataError, QSAM2Error, UnsupportedLayerError
from qsam2_ao.export import ExportedSAM2, aoti, export_aoti, export_onnx, export_openvino
from qsam2_ao.export.parts import ExportPart, export_parts
from qsam2_ao.export.qdq import for_export
from qsam2_ao.export.settings import SIZE_KEY, ExportSettings
from qsam2_ao.native import why_no_kernels
from qsam2_ao.predictors import predictor_state

#: On other CPUs "auto" times its choices, and may make one that cannot be packaged.
FASTEST = "auto" if why_no_kernels() is None else "dequantized"
EXPORTS: dict[str, tuple[Callable[..., Any], str, tuple[str, ...]]] = {
    "aoti": (export_aoti, FASTEST, ()),
    "onnx": (export_onnx, "packed", ("onnx", "onnxscript", "onnxruntime")),
    "openvino": (export_openvino, "packed", ("onnx", "onnxscript", "openvino")),
}


@pytest.fixture(scope="module")
def clip() -> Sequence:
    return generate_sequence("test", 3, num_frames=10)


@pytest.fixture(scope="module")
def onnx_files(trained_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return export_onnx(load_qsam2(trained_file), tmp_path_factory.mktemp("runner") / "onnx", progress=False)


@pytest.fixture(scope="module", params=list(EXPORTS))
def exported(request: pytest.FixtureRequest, trained_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    export, target, packages = EXPORTS[request.param]
    for package in packages:
        pytest.importorskip(package)
    if request.param == "onnx":
        return request.getfixturevalue("onnx_files")[0].parent
    folder = tmp_path_factory.mktemp("runner") / request.param
    # The C++ that calls the kernels runs a few times here: it need not be fast.
    quickly_compiled = inductor_config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"})
    with pytest.MonkeyPatch.context() as patch, quickly_compiled:
        if request.param == "openvino":  # starts from the same files
            files = request.getfixturevalue("onnx_files")
            patch.setattr("qsam2_ao.export.openvino.export_onnx", lambda model, folder, *, progress: files)
        export(load_qsam2(trained_file, target=target), folder, progress=False)
    return folder


@pytest.fixture
def target(exported: Path) -> str:
    """What the exported model was loaded for: int8 kernels round otherwise than float layers."""
    return EXPORTS[exported.name][1]


@pytest.fixture
def model(trained_file: Path, target: str) -> Any:
    return load_qsam2(trained_file, target=target)


def prompts(clip: Sequence, object_id: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A click inside the object, and its box."""
    y, x = np.where(clip.masks[0] == object_id)
    middle = len(x) // 2
    click = {"points": np.array([[x[middle], y[middle]]], np.float32), "labels": np.array([1], np.int32), "box": None}
    box = np.array([x.min(), y.min(), x.max(), y.max()], np.float32)
    return click, {"points": None, "labels": None, "box": box}


def iou(one: np.ndarray, other: np.ndarray) -> float:
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


@pytest.mark.slow
def test_images_and_videos_match_the_predictors(exported: Path, model: Any, clip: Sequence) -> None:
    ours, theirs = ExportedSAM2(exported), SAM2ImagePredictor(model)
    ours.set_image(clip.frames[0])
    theirs.set_image(clip.frames[0])
    first, second = clip.object_ids[:2]
    click, box = prompts(clip, second)  # the first one's click may mean two masks: which, is a matter of rounding
    for prompt, several in ((click, True), (click, False), (box, False)):
        arguments = {"point_coords": prompt["points"], "point_labels": prompt["labels"], "box": prompt["box"]}
        given_in_order = (*arguments.values(), None, several)  # places are the same as names
        masks, scores, low = ours.predict(*given_in_order)
        expected, expected_scores, expected_low = theirs.predict(*given_in_order)
        assert (masks.shape, low.shape) == (expected.shape, expected_low.shape)
        np.testing.assert_allclose(scores, expected_scores, atol=0.05)
        assert min(iou(a, b > 0) for a, b in zip(masks, expected, strict=True)) > 0.9

    given = {first: box, second: prompts(clip, second)[0]}
    state = predictor_state(model, clip.frames)
    for object_id, prompt in given.items():
        model.add_new_points_or_box(state, 0, object_id, **prompt)
    expected_tracks = {
        frame: dict(zip(ids, logits[:, 0].numpy() > 0, strict=True))
        for frame, ids, logits in propagate_quietly(model, state)
    }
    tracks = dict(ours.track(clip.frames, given))
    assert list(tracks) == list(range(10))
    overlaps = [iou(logits > 0, expected_tracks[f][i]) for f, found in tracks.items() for i, logits in found.items()]
    assert np.mean(overlaps) > 0.95, overlaps
    assert sum(mask.sum() for mask in expected_tracks[9].values()) > 100  # there is something to overlap


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["onnx", "openvino"], indirect=True)  # what aoti compiles has other kernels
def test_the_files_compute_what_the_parts_compute(exported: Path, model: Any) -> None:
    suffix, run = {"onnx": (".onnx", in_onnx_runtime), "openvino": (".xml", in_openvino)}[exported.name]
    parts = {part.name: part for part in export_parts(for_export(model))}
    check_files([exported / f"{name}{suffix}" for name in parts], run, model, parts)
    if exported.name == "onnx":
        check_quantized_layers(exported / "image_encoder.onnx", model)


@pytest.mark.slow
def test_what_a_user_gets_wrong(exported: Path, clip: Sequence) -> None:
    sam = ExportedSAM2(exported)
    with pytest.raises(DataError, match="call set_image before"):
        sam.predict(np.zeros((1, 2)), np.ones(1))
    with pytest.raises(DataError, match=r"uint8 \[height, width, 3\], not float64"):
        sam.set_image(np.zeros((8, 8, 3)))
    sam.set_image(clip.frames[0])
    with pytest.raises(DataError, match="has NaN or infinite"):
        sam.predict(np.array([[1.0, np.nan]]), np.ones(1))
    for wrong in ({}, {"point_coords": np.zeros((1, 2))}, {"point_coords": np.zeros((2, 2)), "point_labels": [1]}):
        with pytest.raises(DataError, match=r"no prompt|has no labels|one label for each point"):
            sam.predict(**wrong)
    frames, box = clip.frames, np.array([8, 8, 40, 40])
    mask = clip.masks[0] == clip.object_ids[0]
    for shown, prompts, said in (
        (frames, {}, "at least one object"),
        (frames[:0], {1: {"box": box}}, "at least one frame"),
        (frames, {1: {"box": np.stack([box, box])}}, "object 1: the prompt is for 2 objects"),
        (frames, {1: {"boxes": box, "points": None}}, "object 1: unknown prompt 'boxes'"),
        (frames, {1: {"box": box, "mask": mask}}, "object 1 has a mask and another prompt"),
        ([frames[0], frames[1][:-1]], {1: {"box": box}}, "frame 1 is "),
    ):
        with pytest.raises(DataError, match=said):
            list(sam.track(shown, prompts))
    (found,) = [masks[1] for _, masks in sam.track(frames[:1], {1: {"mask": mask}})]
    assert iou(found > 0, mask) > 0.9
    with pytest.raises(DataError, match=r"uint8 \[height, width, 3\], not uint8 \[0, 8, 3\]"):
        sam.set_image(np.zeros((0, 8, 3), np.uint8))


@pytest.mark.slow
def test_a_memory_without_weights_tracks_nothing(exported: Path, tmp_path: Path, clip: Sequence) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for file in exported.iterdir():
        (folder / file.name).symlink_to(file)
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").unlink()
    (folder / "settings.json").write_text(json.dumps({**settings, "images_only": True}))
    with pytest.raises(QSAM2Error, match="the model cannot track"):
        next(ExportedSAM2(folder).track(clip.frames, {1: {"box": np.array([8, 8, 40, 40])}}))


@pytest.mark.slow
def test_the_command_line_runs_the_folder(
    exported: Path, target: str, trained_file: Path, clip: Sequence, tmp_path: Path
) -> None:
    from PIL import Image
    from typer.testing import CliRunner

    from qsam2_ao.cli.main import app

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    pictures = tmp_path / "frames"
    pictures.mkdir()
    for number, frame in enumerate(clip.frames[:3]):
        Image.fromarray(frame).save(pictures / f"{number:05d}.png")
    x0, y0, x1, y1 = prompts(clip, clip.object_ids[0])[1]["box"]
    box = ("--box", f"{x0},{y0},{x1},{y1}", "--json")
    found = run("segment", exported, pictures / "00000.png", *box, "-o", tmp_path / "segment")
    assert found.exit_code == 0, found.stderr
    expected = run(
        "segment", trained_file, pictures / "00000.png", *box, "--target", target, "-o", tmp_path / "expected"
    )
    pixels = [json.loads(r.stdout)["objects"][0]["pixels"] for r in (found, expected)]
    # What the networks compute is compared above: of so small an object a runtime's rounding moves the outline.
    assert pixels[0] == pytest.approx(pixels[1], rel=0.1)
    tracked = run("track", exported, pictures, *box, "-o", tmp_path / "track")
    assert tracked.exit_code == 0, tracked.stderr
    assert json.loads(tracked.stdout)["objects"][0]["frames_visible"] == 3
    mask = ("--mask", tmp_path / "expected" / "00000_mask.png", "--json")
    again = run("segment", exported, pictures / "00000.png", *mask, "-o", tmp_path / "again")
    assert again.exit_code == 0, again.stderr
    masked = run("track", exported, pictures, *mask, "--point", "2@2:30,40", "-o", tmp_path / "masked")
    assert masked.exit_code == 0, masked.stderr
    first = [read_ids(tmp_path / name) for name in ("expected/00000_mask.png", "masked/masks/00000.png")]
    assert iou(*(ids == 1 for ids in first)) > 0.7  # SAM2 keeps masks at a quarter of the input: 24 x 24
    other = run("evaluate", exported)
    assert other.exit_code == 2
    assert "exported files are for qsam2 segment, track" in " ".join(other.stderr.split())


def test_folders_that_hold_no_export(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has no settings\.json"):
        ExportedSAM2(tmp_path)
    (tmp_path / "settings.json").write_text('{"runtime": "onnx"}')
    with pytest.raises(CheckpointError, match="damaged or of another version"):
        ExportedSAM2(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("runtime", {}, "runtime is {}, not a str"),
        ("kernels", 1, "kernels is 1, not a bool"),
        ("num_maskmem", -1, "num_maskmem is -1, not a count"),
        ("image_size", 96.0, "image_size is 96.0, not a count"),
        ("image_size", 96000, "image_size is 96000, not a multiple of 16 up to 8192"),
        ("image_size", 97, "image_size is 97, not a multiple of 16"),
    ],
)
def test_damaged_settings_are_named(tmp_path: Path, packed_file: Path, field: str, value: Any, message: str) -> None:
    path = ExportSettings.of(load_qsam2(packed_file), "onnx").save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(CheckpointError, match=message):
        ExportedSAM2(tmp_path)


@pytest.mark.slow
def test_files_of_different_exports_are_named(exported: Path, tmp_path: Path) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "image_size": 128}))
    with pytest.raises(CheckpointError, match=r"image_encoder.* cannot be run .*different exports"):
        ExportedSAM2(tmp_path).set_image(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["aoti"], indirect=True)
def test_packages_of_older_versions_tell_no_size_and_still_run(exported: Path, tmp_path: Path) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for package in tmp_path.glob("*.pt2"):
        with zipfile.ZipFile(package) as whole:
            entries = {item.filename: whole.read(item) for item in whole.infolist()}
        with zipfile.ZipFile(package, "w", zipfile.ZIP_STORED) as older:
            for name, content in entries.items():
                if name.endswith("_metadata.json"):
                    said = json.loads(content)
                    assert said.pop(SIZE_KEY) == "96"
                    content = json.dumps(said).encode()
                older.writestr(name, content)
    picture = np.zeros((64, 64, 3), np.uint8)
    results = []
    for folder in (exported, tmp_path):
        sam = ExportedSAM2(folder)
        sam.set_image(picture)
        results.append(sam.predict(np.array([[20, 20]]), np.array([1]), return_logits=True)[0])
    np.testing.assert_array_equal(*results)


def test_a_compiler_that_is_not_there_is_named(
    packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ExportPart("image_encoder", torch.nn.Linear(2, 2), {"x": torch.ones(1, 2)}, ("y",))
    monkeypatch.setattr(aoti, "export_parts", lambda model: [small])
    no_compiler = inductor_config.patch({"cpp.cxx": (None, str(tmp_path / "no-g++"))})
    said = r"cannot compile image_encoder: .*no-g\+\+.*it takes a C\+\+ compiler"
    with no_compiler, pytest.raises(QSAM2Error, match=said):
        export_aoti(load_qsam2(packed_file), tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.slow
def test_damaged_files_are_named(exported: Path, tmp_path: Path) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = next(tmp_path.glob("mask_decoder.[pox][tnm]*"))
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"mask_decoder.* cannot be loaded .*export the model again"):
        ExportedSAM2(tmp_path)
    broken.unlink()
    with pytest.raises(CheckpointError, match=r"mask_decoder.* is missing"):
        ExportedSAM2(tmp_path)


def test_kernels_that_are_not_here(tmp_path: Path, packed_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qsam2_ao.native import build

    ExportSettings.of(load_qsam2(packed_file), "aoti", kernels=True).save(tmp_path)
    monkeypatch.setattr(build, "why_no_cpu_kernels", lambda: "No such CPU.")
    with pytest.raises(UnsupportedLayerError, match="No such CPU"):
        ExportedSAM2(tmp_path)


def test_a_runtime_that_is_not_installed(tmp_path: Path, packed_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def missing(name: str) -> Any:
        raise ImportError(name)

    ExportSettings.of(load_qsam2(packed_file), "openvino").save(tmp_path)
    (tmp_path / "image_encoder.xml").touch()
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(QSAM2Error, match=r"needs the package openvino: pip install .*\[export\]"):
        ExportedSAM2(tmp_path)
