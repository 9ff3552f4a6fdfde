"""Prompts as arrays: the predictors' rules, and what is said about those that break them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qsam2_ao.data.prompts import check_mask, check_prompts
from qsam2_ao.errors import DataError

SIZE = (64, 48)


@pytest.mark.parametrize(
    ("arguments", "coords", "labels"),
    [
        ({"points": [[1, 2], [3, 4]], "labels": [1, 0]}, [[[1, 2], [3, 4]]], [[1, 0]]),
        ({"points": [[[1, 2]], [[3, 4]]], "labels": [[1], [0]]}, [[[1, 2]], [[3, 4]]], [[1], [0]]),
        ({"box": [1, 2, 3, 4]}, [[[1, 2], [3, 4]]], [[2, 3]]),
        ({"box": [[1, 2, 3, 4], [5, 6, 7, 8]]}, [[[1, 2], [3, 4]], [[5, 6], [7, 8]]], [[2, 3], [2, 3]]),
        ({"points": [[9, 9]], "labels": [1], "box": [[1, 2, 3, 4]]}, [[[1, 2], [3, 4], [9, 9]]], [[2, 3, 1]]),
        ({"points": [[64, 48], [-5, 900]], "labels": [1, -1]}, [[[64, 48], [-5, 900]]], [[1, -1]]),
        ({"points": torch.tensor([[1.5, 2.0]]), "labels": torch.tensor([True])}, [[[1.5, 2]]], [[1]]),
    ],
)
def test_what_is_meant(arguments: dict[str, Any], coords: Any, labels: Any) -> None:
    found = check_prompts(SIZE, **arguments).clicks()
    assert [array.dtype for array in found] == [np.float32, np.int32]
    np.testing.assert_array_equal(found[0], coords)
    np.testing.assert_array_equal(found[1], labels)


def test_mask_inputs() -> None:
    assert check_prompts(SIZE, mask=np.zeros((1, 24, 24)), mask_size=24).masks.shape == (1, 1, 24, 24)
    batch = check_prompts(SIZE, box=[[1, 2, 3, 4]] * 2, mask=np.zeros((2, 1, 24, 24)), mask_size=24)
    assert (batch.batch, batch.masks.shape) == (2, (2, 1, 24, 24))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "there is no prompt: give point_coords with point_labels, or box"),
        ({"points": [[1, 2]]}, r"point_coords has no labels: give point_labels, \[1\]"),
        ({"labels": [1]}, "point_labels has no points: give point_coords"),
        ({"points": [[1, 2, 3, 4], [5, 6, 7, 8]], "labels": [1] * 4}, r"point_coords has shape \[2, 4\].*transposed"),
        ({"points": [1, 2], "labels": [1]}, r"point_coords has shape \[2\], wanted \[N, 2\]"),
        ({"points": [[[1, 2]], [[3, 4]]], "labels": [1, 1]}, r"point_labels has shape \[2\], wanted \[2, 1\]"),
        ({"points": [[1, 2]], "labels": [[1]]}, r"point_labels has shape \[1, 1\], wanted \[1\]"),
        ({"points": [[1, 2]], "labels": [0.5]}, "point_labels holds 0.5; labels are 1"),
        ({"points": [[1, 2]], "labels": [4]}, "point_labels holds 4"),
        ({"points": [[np.nan, 2]], "labels": [1]}, r"point_coords \[1, 2\] has NaN or infinite"),
        ({"points": [["a", "b"]], "labels": [1]}, "point_coords is of type <U1, not numbers"),
        ({"points": [[1], [2, 3]], "labels": [1, 1]}, "point_coords is no array of numbers"),
        ({"points": [[65, 2]], "labels": [1]}, r"point_coords has \(65, 2\), outside of the picture, which is 64 x 48"),
        ({"points": [[3, -1]], "labels": [0]}, "outside of the picture"),
        ({"points": np.zeros((0, 2)), "labels": []}, "point_coords is empty"),
        ({"box": np.zeros((0, 4))}, "box is empty"),
        ({"box": [[1, 2], [3, 4]]}, r"box has shape \[2, 2\], wanted \[4\]"),
        ({"box": [5, 2, 5, 9]}, r"box \[5, 2, 5, 9\] has no area; wanted left, top"),
        ({"box": [9, 2, 5, 9]}, "has no area"),
        ({"box": [1, 2, 5, np.inf]}, "box .* has NaN or infinite"),
        ({"box": [1, 2, 5, 49]}, r"box has \(5, 49\), outside"),
        ({"points": [[1, 2]], "labels": [1], "box": [[1, 2, 3, 4]] * 2}, "different numbers of objects"),
        ({"mask": np.zeros((1, 24, 24))}, "mask_input cannot be used here"),
        (
            {"mask": np.zeros((24, 24)), "mask_size": 24},
            r"mask_input has shape \[24, 24\], wanted logits \[1, 24, 24\]",
        ),
        ({"mask": np.zeros((1, 9, 9)), "mask_size": 24}, r"mask_input has shape \[1, 9, 9\]"),
    ],
)
def test_what_cannot_be_meant(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_prompts(SIZE, **arguments)


anything = hnp.arrays(
    st.sampled_from([np.float64, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
)


@given(points=st.none() | anything, labels=st.none() | anything, box=st.none() | anything)
def test_any_arrays_are_refused_or_whole(points: Any, labels: Any, box: Any) -> None:
    try:
        found = check_prompts(SIZE, points, labels, box)
    except DataError:
        return
    coords, kinds = found.clicks()
    assert coords.shape == (*kinds.shape, 2)
    assert len(coords) == found.batch > 0
    assert np.isfinite(coords).all()


def test_masks_of_objects() -> None:
    np.testing.assert_array_equal(check_mask((2, 1), [[0, 255]]), [[False, True]])
    for mask, message in (
        (np.zeros((64, 48)), r"mask has shape \[64, 48\], wanted \[48, 64\]"),
        (np.full((48, 64), np.nan), "NaN"),
        (np.arange(48 * 64).reshape(48, 64), "mask holds several values besides 0"),
    ):
        with pytest.raises(DataError, match=message):
            check_mask(SIZE, mask)
