"""Settings that cannot be are refused by name, and a batch is dealt out evenly or not at all."""

from __future__ import annotations

import pytest

from qsam2_ao.errors import QConfigError
from qsam2_ao.graph import REGIONS
from qsam2_ao.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps of a training must be positive, not 0"),
        ({"accumulate": 0}, "accumulate of a training"),
        ({"batch_size": -1}, "batch_size of a training"),
        ({"lr": 0.0}, "lr of a training must be positive"),
        ({"range_lr": -1.0}, "range_lr of a training must not be negative"),
        ({"workers": -1}, "workers of a training must not be negative"),
        ({"ema": 1.0}, "ema is a decay"),
        ({"freeze": ("image_encodr",)}, "image_encoder"),
        ({"freeze": REGIONS}, "every region is frozen"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    with pytest.raises(QConfigError, match=message):
        TrainingSettings(**{"steps": 5, **values})


def test_the_batch_is_that_of_all_processes_and_parts():
    settings = TrainingSettings(1, batch_size=12, accumulate=2)
    assert [settings.clips_at_once(ranks) for ranks in (1, 2, 3)] == [6, 3, 2]
    with pytest.raises(QConfigError, match="12 clips cannot be dealt to 4 processes x 2 parts; choose a multiple of 8"):
        settings.clips_at_once(4)
    assert TrainingSettings(1).clips_at_once(3, default=4) == 4


def test_what_does_not_change_the_result_is_not_recorded():
    assert TrainingSettings(1, workers=4).recorded == TrainingSettings(1).recorded
    assert TrainingSettings(1, bf16=True).recorded != TrainingSettings(1).recorded
