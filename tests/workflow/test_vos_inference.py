"""SAM2's tools/vos_inference.py, and a script that asks for its model as that does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsam2_ao import load_qsam2
from qsam2_ao.data.datasets import open_dataset
from qsam2_ao.data.procedural import generate_sequence, write_sequence
from qsam2_ao.errors import QSAM2Error
from qsam2_ao.evaluation.protocol import following
from qsam2_ao.evaluation.saving import MaskWriter
from qsam2_ao.evaluation.video import score_video
from qsam2_ao.workflow.evaluate import EvaluationSettings, evaluate
from qsam2_ao.workflow.labelled import labelled_videos
from qsam2_ao.workflow.vos_inference import vos_inference

_SCRIPT = """
import sys
from sam2.build_sam import build_sam2_video_predictor
predictor = build_sam2_video_predictor(
    config_file="ignored.yaml", ckpt_path="ignored.pt", apply_postprocessing="--apply_postprocessing" in sys.argv,
    hydra_overrides_extra=sys.argv[2:], vos_optimized="--vos" in sys.argv,
)
with open(sys.argv[1], "w") as file:
    print(type(predictor).__name__, predictor.fill_hole_area, predictor.non_overlap_masks,
          predictor.binarize_mask_from_pts_for_mem_enc, file=file, end="")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(_SCRIPT)
    return path


def test_a_script_gets_the_model_with_the_settings_that_it_asks_for(packed_file: Path, script: Path, tmp_path: Path):
    vos_inference(str(packed_file), script, [str(tmp_path / "told"), "++model.non_overlap_masks=true"])
    assert (tmp_path / "told").read_text() == "SAM2VideoPredictor 0 True False"
    from sam2.build_sam import build_sam2_video_predictor

    assert build_sam2_video_predictor.__module__ == "sam2.build_sam", "only the script got another one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sam2_checkpoint", "x.pt"], "--sam2_checkpoint is left out: the model is"),
        (["told", "++model.image_size=512"], "asks for .*image_size=512, which cannot be changed"),
    ],
)
def test_what_a_finished_model_cannot_do_is_refused(
    packed_file: Path, script: Path, tmp_path: Path, arguments: list[str], message: str
):
    with pytest.raises(QSAM2Error, match=message):
        vos_inference(str(packed_file), script, arguments)
    with pytest.raises(QSAM2Error, match=r"absent\.py: no such file"):
        vos_inference(str(packed_file), tmp_path / "absent.py", [])


def _masks(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))}


@pytest.fixture
def real_script() -> Path:
    """From a clone of facebookresearch/sam2, whose folder SAM2_REPOSITORY names."""
    path = Path(os.environ.get("SAM2_REPOSITORY", "absent")) / "tools" / "vos_inference.py"
    if not path.is_file():
        pytest.skip("SAM2_REPOSITORY names no clone of facebookresearch/sam2")
    return path


@pytest.mark.parametrize("late", [False, True])
def test_official_masks_are_the_scripts_own_pixel_for_pixel(
    packed_file: Path, real_script: Path, tmp_path: Path, late: bool
):
    sequence = generate_sequence("test", 0, num_frames=5)
    masks = sequence.masks.copy()
    if late:
        masks[:2][masks[:2] == 2] = 0
    write_sequence(replace(sequence, masks=masks), tmp_path)
    options = ["--track_object_appearing_later_in_video"] if late else []
    arguments = (
        "--base_video_dir", tmp_path / "JPEGImages", "--input_mask_dir", tmp_path / "Annotations",
        "--output_mask_dir", tmp_path / "theirs", *options,
    )  # fmt: skip
    command = [sys.executable, "-m", "qsam2_ao", "vos-inference", packed_file, real_script, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [video] = open_dataset(tmp_path)
    predictor = load_qsam2(packed_file, target="auto")
    with following(predictor, "official"):
        score_video(predictor, video, found=MaskWriter(tmp_path / "ours", video))
    theirs, ours = _masks(tmp_path / "theirs"), _masks(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    assert len(theirs) == 5
    assert all(np.array_equal(mask, ours[name]) for name, mask in theirs.items())
    assert any(mask.any() for mask in theirs.values())


def test_official_masks_of_objects_that_overlap_are_the_scripts_own(
    packed_file: Path, real_script: Path, tmp_path: Path
):
    sequence = generate_sequence("test", 0, num_frames=5)
    write_sequence(sequence, tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "JPEGImages_24fps")
    for object_id in sequence.object_ids:
        folder = tmp_path / "Annotations_6fps" / sequence.name / f"{object_id:03d}"
        folder.mkdir(parents=True)
        for t in (0, 4):
            Image.fromarray((sequence.masks[t] == object_id).astype(np.uint8)).save(folder / f"{t:05d}.png")
    vos_inference(
        str(packed_file),
        real_script,
        ["--base_video_dir", str(tmp_path / "JPEGImages_24fps"), "--input_mask_dir", str(tmp_path / "Annotations_6fps"),
         "--output_mask_dir", str(tmp_path / "theirs"), "--per_obj_png_file"],
    )  # fmt: skip
    settings = EvaluationSettings("official", "sav")
    done = evaluate(str(packed_file), labelled_videos(str(tmp_path)), settings, save_masks=tmp_path / "ours")
    theirs, ours = _masks(tmp_path / "theirs"), _masks(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    assert len(theirs) == 5 * len(sequence.object_ids)
    assert all(np.array_equal(mask, ours[name]) for name, mask in theirs.items())
    assert done is not None
    assert done.results[0]["objects"] == {}, "two annotated frames are not enough to score"
