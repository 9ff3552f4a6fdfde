"""A calibration that stops anywhere goes on from its file, and ends with the bits of one that did not stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao import prepare_qsam2
from qsam2_ao.calibration.kept import KeptCalibration
from qsam2_ao.errors import CheckpointError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.stage import stage_of

IMAGES = 18  # of which 16 go through the model at once


class Killed(BaseException):
    """What nothing catches, as SIGKILL."""


def prepare(keep: Path | None):
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 96, 96, generator=generator) for _ in range(IMAGES)]
    model = build_embedded(SAM2VideoPredictor)
    return prepare_qsam2(
        model,
        {"mask_decoder": "w4a8"},
        calibration_data=images,
        vrc_regions=("mask_decoder",),
        rounding="gptq",
        progress=False,
        keep=keep,
    )


@pytest.mark.slow
def test_stopped_at_every_kind_of_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = prepare(None)
    path = tmp_path / "calibration.pt"
    save = KeptCalibration._save_if_due
    moments: list[str] = []

    def save_and_stop(kept: KeptCalibration) -> None:
        """Save each time, and die behind the first time of each kind: in a pass, between layers, in the last pass."""
        kept._every = 0
        save(kept)
        under_way, solved = kept._content["pass"], len(kept._content["layers"])
        moment = f"{under_way['name']}, {under_way['done']} batches" + (f", {solved} layers" if solved == 3 else "")
        if moment not in moments and (solved in (0, 3) or under_way["name"] == "input ranges"):
            moments.append(moment)
            raise Killed

    monkeypatch.setattr(KeptCalibration, "_save_if_due", save_and_stop)
    for _ in range(10):
        try:
            prepared = prepare(path)
            break
        except Killed:
            continue
    assert moments == [
        "observing 0, 1 batches",
        "observing 0, 2 batches",
        "observing 0, 2 batches, 3 layers",
        "input ranges, 1 batches",
        "input ranges, 2 batches",
    ]
    found = prepared.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, found[name]), name
    assert stage_of(prepared).info == stage_of(whole).info


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"damaged", "cannot be continued from"), (None, "other settings"), ({"a": 1}, "is no interrupted calibration")],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, content: object, message: str):
    path = tmp_path / "calibration.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        kept = KeptCalibration(path, {"seed": 1}, every=0)
        kept.over("observing", dict, print).after(1, None)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"calibration\.pt.*{message}"):
        KeptCalibration(path, {"seed": 0})


def test_a_file_of_other_weights_or_pictures_is_refused(tmp_path: Path):
    path = tmp_path / "calibration.pt"
    images = [torch.rand(3, 96, 96) for _ in range(3)]
    options = {"vrc_regions": ("obj_ptr_proj",), "rounding": "gptq", "progress": False, "keep": path}
    model = build_embedded(SAM2VideoPredictor)

    def prepare_on(data: list[torch.Tensor]) -> None:
        prepare_qsam2(model, {"obj_ptr_proj": "w4a8"}, calibration_data=data, **options)

    with pytest.MonkeyPatch.context() as patch:
        save = KeptCalibration._save_if_due

        def always(kept: KeptCalibration) -> None:
            kept._every = 0
            save(kept)

        patch.setattr(KeptCalibration, "_save_if_due", always)
        prepare_on(images)
    prepare_on(images)
    with pytest.raises(CheckpointError, match="other settings"):
        prepare_on(images[:2])
    with torch.no_grad():
        model.obj_ptr_proj.layers[0].weight[0, 0] += 1
    with pytest.raises(CheckpointError, match="other settings"):
        prepare_on(images)


@pytest.mark.parametrize("as_files", [False, True])
def test_other_pictures_of_the_same_names_are_no_reason_to_go_on(as_files: bool, tmp_path: Path):
    generator = np.random.default_rng(0)

    def pictures() -> Any:
        """Others at each call, in memory or in the same files."""
        found = [generator.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(2)]
        if not as_files:
            return found
        for number, picture in enumerate(found):
            Image.fromarray(picture).save(tmp_path / f"{number}.png")
        return tmp_path

    model = build_embedded()
    settings: Any = {"vrc": None, "progress": False, "keep": tmp_path / "kept.pt"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptCalibration.__init__, "__defaults__", (0.0,))  # saves at once
        prepare_qsam2(model, {"obj_ptr_proj": "w4a8"}, calibration_data=pictures(), **settings)
    with pytest.raises(CheckpointError, match="other settings; delete it"):
        prepare_qsam2(model, {"obj_ptr_proj": "w4a8"}, calibration_data=pictures(), **settings)
