"""Masks as polygons along the edges of their pixels: filled, they give the mask back to the pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


def mask_polygons(mask: NDArray[np.bool_]) -> list[list[int]]:
    """The outlines of a mask as COCO's polygons.

    Each 4-connected part is one polygon. COCO's polygons have no holes: a hole is joined to the outline by a cut of no
    width, so that the filled polygons are the mask exactly.

    Args:
        mask: bool ``[height, width]``.

    Returns:
        ``[x0, y0, x1, y1, ...]`` for each part, in pixels from the left and upper edge of the picture, clockwise as
        seen on the screen; the pixel in the corner is ``[0, 0, 1, 0, 1, 1, 0, 1]``.

    Raises:
        DataError: It is not a boolean picture.

    Example:
        >>> mask_polygons(np.ones((2, 3), bool))
        [[0, 0, 3, 0, 3, 2, 0, 2]]
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise DataError(f"a mask to outline must be bool [height, width], got {mask.dtype} {list(mask.shape)}")
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if len(rows) == 0:
        return []
    top, left = int(rows[0]), int(columns[0])
    framed = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    outlines = _Outlines(framed)
    outlines.join_holes(framed)
    return [[value for x, y in ring for value in (x + left, y + top)] for ring in outlines.rings()]


class _Outlines:
    """The closed outlines of a mask with an empty margin, as linked nodes, mask to the right of the way.

    A node is a corner of an outline. Where two pixels touch at a corner only, there are two nodes in one place, so that
    the outlines of the two stay apart.
    """

    def __init__(self, framed: NDArray[np.bool_]) -> None:
        corner_x, corner_y, right, down = _corners(framed)
        # On a line of the grid, corners are the ends of edges: sorted, each two in turn belong together.
        across, along = _partners(corner_y, corner_x, right), _partners(corner_x, corner_y, down)
        self.x, self.y = (corner_x - 1).tolist(), (corner_y - 1).tolist()  # without the margin
        self.next = [-1] * len(self.x)
        self.starts: list[int] = []
        self.holes: list[int] = []
        self.parts: dict[int, list[int]] = {}  # where an edge begins -> where its parts do, which bridges divide
        for first in range(len(self.x)):
            if self.next[first] >= 0:
                continue
            # The uppermost corner of an outline, the left one of those: is the mask inside of it, or around it?
            outer = bool(framed[corner_y[first], corner_x[first]])
            (self.starts if outer else self.holes).append(first)
            node, horizontal = first, outer
            while self.next[node] < 0:
                self.next[node] = across[node] if horizontal else along[node]
                node, horizontal = self.next[node], not horizontal

    def join_holes(self, framed: NDArray[np.bool_]) -> None:
        """Make every hole a part of the outline around it."""
        if not self.holes:
            return
        edges = self._upward_and_downward()
        leftmost = sorted(map(self._leftmost, self.holes), key=lambda node: (self.x[node], self.y[node]))
        for node in leftmost:
            row = framed[self.y[node] + 1, : self.x[node] + 1]
            x = int(np.flatnonzero(~row)[-1])  # of the edge that is met on the way to the left
            parts = self._edge_at(edges, x, self.y[node])
            before = next(part for part in parts if self._passes(part, self.y[node]))
            parts.append(self._bridge(before, x, node))

    def _leftmost(self, first: int) -> int:
        best, node = first, self.next[first]
        while node != first:
            if (self.x[node], self.y[node]) < (self.x[best], self.y[best]):
                best = node
            node = self.next[node]
        return best

    def _upward_and_downward(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The vertical edges' (column, upper end), sorted, as one number each, and the node at which each begins."""
        begin = np.arange(len(self.x))
        x, y, end = np.array(self.x), np.array(self.y), np.array(self.next)
        begin = begin[x == x[end]]
        keys = (x[begin] << 32) + np.minimum(y[begin], y[end[begin]])
        order = np.argsort(keys)
        return keys[order], begin[order]

    def _edge_at(self, edges: tuple[NDArray[np.int64], NDArray[np.int64]], x: int, row: int) -> list[int]:
        """The nodes at which the parts of the edge begin that passes a row of pixels: several after a bridge."""
        keys, begin = edges
        whole = int(begin[np.searchsorted(keys, (x << 32) + row, side="right") - 1])
        return self.parts.setdefault(whole, [whole])

    def _passes(self, node: int, row: int) -> bool:
        start, end = self.y[node], self.y[self.next[node]]
        return min(start, end) <= row < max(start, end)

    def _bridge(self, before: int, x: int, hole: int) -> int:
        """Lead the way from an edge to a node of a hole, around it, and back to the node at which the edge goes on."""
        y, last = self.y[hole], hole
        while self.next[last] != hole:
            last = self.next[last]
        there, back, again = (len(self.x) + i for i in range(3))
        self.x += [x, x, self.x[hole]]
        self.y += [y, y, y]
        self.next += [hole, self.next[before], back]
        self.next[before], self.next[last] = there, again
        return back

    def rings(self) -> list[list[tuple[int, int]]]:
        """The outlines as corners, none twice in a row."""
        found = []
        for first in self.starts:
            ring = [(self.x[first], self.y[first])]
            node = self.next[first]
            while node != first:
                if (self.x[node], self.y[node]) != ring[-1]:
                    ring.append((self.x[node], self.y[node]))
                node = self.next[node]
            found.append(ring)
        return found


_Corners = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]


def _corners(framed: NDArray[np.bool_]) -> _Corners:
    """x and y of all corners, row by row, and whether their two edges lead to the right and down."""
    # Bits of the four pixels around a point of the grid: upper left 1, upper right 2, lower left 4, lower right 8.
    bits = framed.astype(np.uint8)
    around = bits[:-1, :-1] | bits[:-1, 1:] << 1 | bits[1:, :-1] << 2 | bits[1:, 1:] << 3
    y, x = np.nonzero(_CORNERS[around])
    kinds = around[y, x]
    y, x, kinds = (np.repeat(values, _CORNERS[kinds]) for values in (y, x, kinds))
    second = np.zeros(len(kinds), np.intp)
    second[1:] = (y[1:] == y[:-1]) & (x[1:] == x[:-1])
    # One pixel, or all but one: the edges lead to where that pixel is. Two that touch there: one after the other.
    quarter = _QUARTERS[second, kinds]
    return x + 1, y + 1, quarter % 2 == 1, quarter >= 2


#: The four bits -> how many corners are there.
_CORNERS = np.array([0, 1, 1, 0, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 1, 0])
#: The pixels (0 to 3, as the bits) on whose side the edges of the first and of the second corner there are.
_QUARTERS = np.zeros((2, 16), np.int64)
_QUARTERS[0] = [0, 0, 1, 0, 2, 0, 1, 3, 3, 0, 0, 2, 0, 1, 0, 0]
_QUARTERS[1, [6, 9]] = 2, 3


def _partners(line: NDArray[np.int64], place: NDArray[np.int64], forward: NDArray[np.bool_]) -> list[int]:
    """For each corner the other end of the edge on its line."""
    order = np.lexsort((forward, place, line))
    other = np.empty(len(order), np.int64)
    other[order[::2]], other[order[1::2]] = order[1::2], order[::2]
    found: list[int] = other.tolist()
    return found
