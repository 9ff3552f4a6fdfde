"""The contact sheet: masks of the models beside each other where they differ most."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..reporting.overlay import draw_masks, draw_prompts, side_by_side
from ..segmentation.schedule import ObjectPrompt
from .results import Case

CELL = (320, 240)
"""Width and height of a picture on the sheet."""
PER_SUBJECT = 2
"""Cases of one picture or clip, so that one that all fail on does not fill the sheet."""
ALIKE = 99.5
"""Masks of a higher IoU look the same."""
ONLY_FIRST, ONLY_OTHER = 1, 2
"""Colours (``overlay.colour``) of the pixels that one of two masks has."""

Masks = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Shown:
    """What there is to see of a case.

    Attributes:
        picture: uint8 ``[height, width, 3]``.
        prompt: What was asked on this frame, if anything.
        masks: Model's label -> mask, bool ``[height, width]``; the first model's first.
    """

    picture: NDArray[np.uint8]
    prompt: ObjectPrompt | None
    masks: Masks


class WorstCases:
    """Keeps the cases that differ most, with small pictures of them.

    Args:
        number: How many.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._heap: list[tuple[float, int, Case, list[tuple[str, Image.Image]]]] = []
        self._order = count()

    def offer(self, cases: Sequence[Case], show: Callable[[Case], Shown]) -> None:
        """Consider the cases of one picture or clip.

        Args:
            cases: Each object on each frame; of each object, only its worst frame counts.
            show: What there is to see of one of them.
        """
        taken: set[int] = set()
        for case in sorted(cases, key=lambda case: case.least):
            full = len(self._heap) >= self._number
            if len(taken) == PER_SUBJECT or case.least > ALIKE or (full and -self._heap[0][0] <= case.least):
                return
            if case.object_id in taken:
                continue
            taken.add(case.object_id)
            if full:
                heapq.heappop(self._heap)
            heapq.heappush(self._heap, (-case.least, -next(self._order), case, _row(case, show(case))))

    def cases(self) -> tuple[Case, ...]:
        """Those kept, the worst first."""
        return tuple(case for _, _, case, _ in sorted(self._heap, key=lambda entry: entry[:2], reverse=True))

    def sheet(self) -> Image.Image | None:
        """A row for each case: the prompt, each model's mask, and where the worst one differs; None without cases."""
        rows = [row for _, _, _, row in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]
        if not rows:
            return None
        titles, pictures = zip(*(cell for row in rows for cell in row), strict=True)
        return side_by_side(pictures, titles, columns=len(rows[0]))


def _row(case: Case, shown: Shown) -> list[tuple[str, Image.Image]]:
    first, *others = shown.masks
    worst = min(others, key=lambda label: case.iou[label])
    cells = [(case.title, _prompt(shown.picture, shown.prompt or ObjectPrompt()))]
    for label, mask in shown.masks.items():
        title = label if label == first else f"{label}: {case.iou[label]:.0f} %"
        cells.append((title, draw_masks(shown.picture, {case.object_id: mask})))
    one, other = shown.masks[first], shown.masks[worst]
    difference = draw_masks(shown.picture, {ONLY_FIRST: one & ~other, ONLY_OTHER: other & ~one}, opacity=0.8, contour=0)
    cells.append((f"{worst} lacks red, adds blue", difference))
    return [(title, ImageOps.pad(picture, CELL, color=(24, 24, 27))) for title, picture in cells]


def _prompt(picture: NDArray[np.uint8], asked: ObjectPrompt) -> Image.Image:
    """Clicks and box drawn at the size of a cell, so that they are seen on large pictures too."""
    small = ImageOps.contain(Image.fromarray(picture), CELL)
    scale = small.width / picture.shape[1]
    boxes = [] if asked.box is None else [tuple(scale * side for side in asked.box)]
    return draw_prompts(small, [(scale * x, scale * y, label) for x, y, label in asked.points], boxes, radius=5)
