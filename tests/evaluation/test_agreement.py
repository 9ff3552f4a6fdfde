from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qsam2_ao.data.procedural import generate_split
from qsam2_ao.errors import DataError
from qsam2_ao.evaluation import image_agreement, image_samples, sqnr


@given(st.floats(-60, 60), st.integers(0, 99))
def test_noise_of_known_power(decibels: float, seed: int) -> None:
    signal = torch.randn(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert sqnr(signal, signal * (1 + 10 ** (-decibels / 20))) == pytest.approx(decibels, abs=1e-6)


def test_extremes() -> None:
    assert sqnr(torch.ones(3), torch.ones(3)) == math.inf
    assert sqnr(torch.zeros(3), torch.ones(3)) == -math.inf
    assert sqnr(torch.zeros(3), torch.zeros(3)) == math.inf
    assert sqnr(torch.ones(3, dtype=torch.float16), torch.full((3,), 2.0)) == 0


def test_a_model_agrees_with_itself_and_less_with_noise(predictor: Any) -> None:
    samples = image_samples(generate_split("test", 2, num_frames=1))
    same = image_agreement(predictor, predictor, samples)
    assert same.mask_iou == 100
    assert same.sqnr == {"stride 4": math.inf, "stride 8": math.inf, "stride 16": math.inf}
    assert json.loads(json.dumps(same.to_dict()))["sqnr"]["stride 16"] is None
    assert (same.num_images, same.num_objects) == (2, sum(len(s.masks) for s in samples))
    results = []
    for amount in (1e-3, 1e-1):
        noisy = copy.deepcopy(predictor)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in noisy.image_encoder.parameters():
                parameter += amount * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)
        results.append(image_agreement(noisy, predictor, samples, prompt="click"))
    slight, strong = results
    assert all(slight.sqnr[level] > strong.sqnr[level] + 20 for level in same.sqnr)
    assert slight.mask_iou >= strong.mask_iou
    assert strong.to_dict()["sqnr"] == strong.sqnr


def test_no_samples(predictor: Any) -> None:
    with pytest.raises(DataError, match="no samples"):
        image_agreement(predictor, predictor, [])
