"""Short random clips of data sets, of one size, as a training takes them."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from .annotation import Annotation
from .formats.base import Video
from .masks import VOID
from .mixture import Mixture
from .procedural import Sequence

#: A clip shows so many times as many objects as are wanted, since some are away on later frames, and so many times as
#: many are tried: a picture of SA-1B has hundreds, most of which overlap.
_SPARE, _TRIED = 3, 8
#: How far the view on a picture moves and grows from one frame to the next, in shares of its sides.
_PACE = 0.03

#: Left, upper, right and lower edge of what is seen, in pixels.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class DatasetClips:
    """Clips of annotated frames, resized to a model's input.

    Objects of a clip do not overlap: of those that do, now one is taken and now the other, each with its whole mask.
    Void counts as background, since SAM2's losses have no pixels that do not count. A picture becomes a clip by a view
    that moves over it.

    Attributes:
        mixture: What to draw from.
        size: Side of the model's square input in pixels.
        objects: How many objects of a clip are wanted at most.
    """

    mixture: Mixture
    size: int
    objects: int = 3

    def longest(self, frames: int) -> int:
        """As many as wanted: a shorter video goes back and forth."""
        return frames

    def name(self) -> str:
        """The data sets, for errors."""
        return self.mixture.describe()

    def draw(self, frames: int, rng: np.random.Generator) -> Sequence:
        """A clip of neighbouring annotated frames of one video.

        Args:
            frames: How many.
            rng: Every draw comes from it.

        Returns:
            uint8 frames and maps of ids; its objects are those that the first frame shows, numbered from 1, which may
            be none.

        Raises:
            DataError: A file cannot be used.
        """
        video = self.mixture.pick(rng)
        annotated = video.annotated
        if not annotated:
            raise DataError(f"{video.name} has no frame with masks; leave it out")
        first = int(rng.integers(max(len(annotated) - frames, 0) + 1))
        times = [annotated[_back_and_forth(first + i, len(annotated))] for i in range(frames)]
        annotations = {t: found for t in sorted(set(times)) if (found := video.annotation(t)) is not None}
        height, width = annotations[times[0]].size
        still = len(annotated) == 1
        boxes = _views(rng, frames, height, width) if still else [(0.0, 0.0, float(width), float(height))] * frames
        pictures = self._pictures(video, times, boxes)
        masks = self._masks([annotations[t] for t in times], boxes, rng)
        return Sequence(pictures, masks, tuple(int(i) for i in np.unique(masks[0]) if i), video.name)

    def _pictures(self, video: Video, times: list[int], boxes: list[Box]) -> NDArray[np.uint8]:
        read = {t: Image.fromarray(video.frames[t]) for t in sorted(set(times))}  # in the order of time, each once
        shape = self.size, self.size
        resized = [read[t].resize(shape, Image.Resampling.BILINEAR, box) for t, box in zip(times, boxes, strict=True)]
        return np.stack([np.asarray(picture) for picture in resized])

    def _masks(self, annotations: list[Annotation], boxes: list[Box], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Random objects that are known on all frames, as long as they do not overlap with those before.

        Those that the first frame shows come first; others are there for frames that are to stand alone.
        """
        ids = np.zeros((len(annotations), self.size, self.size), np.uint8)
        count = 0
        begin = annotations[0].masks.keys()
        later = {i for annotation in annotations for i in annotation.masks} - begin
        order = [*rng.permutation(sorted(begin)), *rng.permutation(sorted(later))]
        for object_id in order[: _TRIED * self.objects]:
            if count == min(_SPARE * self.objects, VOID - 1):
                break
            found = [annotation.mask(int(object_id)) for annotation in annotations]
            if any(mask is None for mask in found):
                continue
            mask = self._resized([mask for mask in found if mask is not None], boxes)
            if mask.any() and not ids[mask].any():
                count += 1
                ids[mask] = count
        return ids

    def _resized(self, masks: Items[NDArray[np.bool_]], boxes: list[Box]) -> NDArray[np.bool_]:
        shape = self.size, self.size
        pictures = [Image.fromarray(mask.astype(np.uint8)) for mask in masks]
        resized = [p.resize(shape, Image.Resampling.NEAREST, box) for p, box in zip(pictures, boxes, strict=True)]
        return np.stack([np.asarray(picture) for picture in resized]).astype(bool)


def _back_and_forth(index: int, length: int) -> int:
    """0, 1, 2, 1, 0, 1, ... for a length of 3."""
    position = index % max(2 * length - 2, 1)
    return min(position, 2 * length - 2 - position) if length > 1 else 0


def _views(rng: np.random.Generator, frames: int, height: int, width: int) -> list[Box]:
    """Windows on a picture that drift and grow or shrink; the first is nearly the whole of it."""
    share = np.clip(0.92 + np.cumsum(rng.normal(0, _PACE, frames)), 0.5, 1)
    across, down = (np.clip(0.5 + np.cumsum(rng.normal(0, 4 * _PACE, frames)), 0, 1) for _ in range(2))
    left, top = across * (1 - share) * width, down * (1 - share) * height
    return [
        (float(x), float(y), float(min(x + s * width, width)), float(min(y + s * height, height)))
        for x, y, s in zip(left, top, share, strict=True)
    ]
