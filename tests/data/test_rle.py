"""Run lengths are those of pycocotools, byte by byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from qsam2_ao.data.rle import decode_rle, encode_rle
from qsam2_ao.errors import DataError

coco = pytest.importorskip("pycocotools.mask")
masks = arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30)))


@given(mask=masks)
def test_the_text_is_that_of_pycocotools(mask: NDArray[np.bool_]) -> None:
    rle, theirs = encode_rle(mask), coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    assert np.array_equal(decode_rle(rle), mask)


def test_long_runs_and_negative_differences() -> None:
    mask = np.zeros((1500, 2000), bool)
    mask[3:1400, 5:1800] = True
    mask[700, 900] = False
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_rle(mask)["counts"] == theirs["counts"].decode()
    assert np.array_equal(decode_rle(theirs), mask)  # bytes, as pycocotools gives them


def test_plain_lists_of_runs_are_read() -> None:
    assert decode_rle({"size": [2, 3], "counts": [1, 2, 3]}).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("mask", [np.ones((2, 2), np.uint8), np.ones((2, 2, 1), bool), np.ones((0, 2), bool)])
def test_what_is_no_mask_is_refused(mask: NDArray[np.bool_]) -> None:
    with pytest.raises(DataError, match="must be bool"):
        encode_rle(mask)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({}, "has size"),
        ({"size": [2], "counts": "4"}, "has size"),
        ({"size": [2, -2], "counts": "4"}, "has size"),
        ({"size": [2, 2], "counts": 4}, "has size"),
        ({"size": [2, 2], "counts": "3"}, "do not fill its 2 x 2"),
        ({"size": [2, 2], "counts": [5, -1]}, "do not fill"),
        ({"size": [2, 2], "counts": [2**62, 2**62, 2**62, 2**62, 4]}, "do not fill"),
        ({"size": [2, 2], "counts": ["a"]}, "cannot be read"),
        ({"size": [2, 2], "counts": "ä"}, "cannot be read"),
        ({"size": [2, 2], "counts": "\x01"}, "cannot be read"),
        ({"size": [2, 2], "counts": "P"}, "ends within a number"),
        ({"size": [2, 2], "counts": "o" * 40}, "cannot be read"),
    ],
)
def test_damaged_runs_are_refused(rle: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_rle(rle)
