"""Polygons give their mask back, in COCO's own filling too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from qsam2_ao.data.outlines import mask_polygons
from qsam2_ao.errors import DataError


def crossings(polygons: list[list[int]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels from which a ray to the left crosses an odd number of edges."""
    edges = np.zeros((shape[0], shape[1] + 1), int)
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
            assert (x0 == x1) != (y0 == y1)  # along the pixels, and no two corners in one place
            if x0 == x1:
                edges[min(y0, y1) : max(y0, y1), x0] += 1
    return edges.cumsum(1)[:, :-1] % 2 == 1


def area(polygon: list[int]) -> float:
    x, y = np.array(polygon[::2]), np.array(polygon[1::2])
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


@given(mask=arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_filled_polygons_are_the_mask(mask: NDArray[np.bool_]) -> None:
    polygons = mask_polygons(mask)
    assert np.array_equal(crossings(polygons, mask.shape), mask)
    assert sum(map(area, polygons)) == mask.sum()  # clockwise on the screen, holes taken off
    assert all(area(polygon) > 0 for polygon in polygons)


@given(mask=arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)), fill=st.just(True)))
def test_cocos_own_filling_gives_the_mask_back(mask: NDArray[np.bool_]) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    if polygons := mask_polygons(mask):
        filled = coco.decode(coco.merge(coco.frPyObjects(polygons, *mask.shape)))
        assert np.array_equal(filled.astype(bool), mask)


def test_a_ring_within_a_ring() -> None:
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    outer, inner = mask_polygons(mask)
    assert outer[:4] == [1, 1, 8, 1]
    assert area(outer) == 24
    assert inner == [4, 4, 5, 4, 5, 5, 4, 5]


def test_pixels_that_touch_at_a_corner_are_two_polygons() -> None:
    assert mask_polygons(np.eye(2, dtype=bool)) == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]


def test_nothing_has_no_polygon() -> None:
    assert mask_polygons(np.zeros((3, 4), bool)) == []


@pytest.mark.parametrize("mask", [np.ones((2, 2), np.uint8), np.ones((2, 2, 2), bool)])
def test_what_is_no_mask_is_refused(mask: NDArray[np.bool_]) -> None:
    with pytest.raises(DataError, match="must be bool"):
        mask_polygons(mask)
