from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qsam2_ao.errors import DataError
from qsam2_ao.evaluation import mask_iou
from qsam2_ao.evaluation.miou import object_masks


@given(arrays(bool, (2, 3, 4, 5)))
def test_equals_counting_pixels(pair: np.ndarray) -> None:
    a, b = pair
    iou = mask_iou(a, b)
    assert iou.shape == (3,)
    for i in range(3):
        pixels_a = {(y, x) for y in range(4) for x in range(5) if a[i, y, x]}
        pixels_b = {(y, x) for y in range(4) for x in range(5) if b[i, y, x]}
        union = pixels_a | pixels_b
        assert iou[i] == (len(pixels_a & pixels_b) / len(union) if union else 1.0)
    assert np.array_equal(iou, mask_iou(b, a))


@given(st.integers(1, 6), st.integers(1, 6))
def test_extremes(height: int, width: int) -> None:
    full, empty = np.ones((height, width), bool), np.zeros((height, width), bool)
    assert mask_iou(full, full) == mask_iou(empty, empty) == 1
    assert mask_iou(full, empty) == 0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.ones((2, 2)), np.ones((2, 2), bool)),
        (np.ones((2, 2), bool), np.ones((2, 3), bool)),
        (np.ones(2, bool), np.ones(2, bool)),
    ],
)
def test_refuses_other_arrays(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(DataError, match="bool"):
        mask_iou(a, b)


def test_object_masks() -> None:
    ids = np.array([[0, 2], [5, 2]], np.uint8)
    assert object_masks(ids, [2, 3, 5]).sum(axis=(1, 2)).tolist() == [2, 0, 1]
