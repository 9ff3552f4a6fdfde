"""What a training learns from and is judged by."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from data_layouts import video, write_maps
from sam2.modeling.sam2_base import SAM2Base

from qsam2_ao import prepare_qsam2
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.training.qat import Rates
from qsam2_ao.training.settings import FLOAT_RATE, TrainingSettings
from qsam2_ao.workflow.training import HELD_OUT_BATCHES, rates_of, training_data

SETTINGS = TrainingSettings(1, frames=1, objects=1)


def test_too_few_videos_to_set_some_aside_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_embedded()
    for index in range(4):
        write_maps(tmp_path, f"{index:02d}", video(index, frames=1))
    training_data(str(tmp_path), "embedded", SETTINGS, model, 0)
    assert not capsys.readouterr().err
    training_data(str(tmp_path), None, SETTINGS, model, 0)
    assert "has too few videos (4) to set some aside" in capsys.readouterr().err
    write_maps(tmp_path, "04", video(4, frames=1))
    training_data(str(tmp_path), None, SETTINGS, model, 0)
    assert not capsys.readouterr().err


def test_procedural_clips_judge_where_they_are_asked_for(tmp_path: Path) -> None:
    write_maps(tmp_path, "00", video(0, frames=2))
    model = build_embedded()
    mixed = training_data(str(tmp_path), "embedded", SETTINGS, model, 0)
    plain = training_data("embedded", None, SETTINGS, model, 0)
    assert len(mixed.held_out) == HELD_OUT_BATCHES
    # Of data sets a batch has one clip, of procedural clips four: the first of them is the same.
    for one, several in zip(mixed.held_out, plain.held_out, strict=True):
        assert torch.equal(one.img_batch[:, :1], several.img_batch[:, :1])


@pytest.fixture(scope="module")
def prepared() -> dict[int, SAM2Base]:
    """Models whose weights have so many bits, but for those of first and last layers; of 32 bits a float one."""
    model = build_embedded()
    recipes = {2: "w2a8", 3: "w3a8", 4: "w4a8"}
    return {32: model} | {bits: prepare_qsam2(model, name, progress=False) for bits, name in recipes.items()}


@pytest.mark.parametrize(
    ("values", "bits", "rates"),
    [
        ({}, 2, Rates(1e-3, ranges=10.0)),
        ({}, 3, Rates(1e-4, ranges=10.0)),
        ({}, 4, Rates(1e-4, ranges=10.0)),
        ({"lr": 1e-5}, 2, Rates(1e-5, ranges=10.0)),
        ({"lr": 1e-3, "range_lr": 0.0}, 4, Rates(1e-3, ranges=0.0)),
        ({"range_lr": 2e-3}, 2, Rates(1e-3, ranges=2.0)),
        ({}, 32, Rates(FLOAT_RATE)),
        ({"lr": 1e-5}, 32, Rates(1e-5)),
    ],
)
def test_rates_are_those_of_the_weights(
    values: dict[str, float], bits: int, rates: Rates, prepared: dict[int, SAM2Base]
) -> None:
    found = rates_of(TrainingSettings(1, **values), prepared[bits])  # type: ignore[arg-type]
    assert asdict(found) == pytest.approx(asdict(rates))
