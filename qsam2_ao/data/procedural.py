"""Procedural videos with exact instance masks: an endless, seeded data set that needs no download.

Every sequence is a function of (split, index, size, number of frames): a textured background under a moving
camera, two to five textured objects that move, turn, scale, deform, hide one another, leave and return, and
look-alikes that nobody asks about. A longer sequence begins with the frames of the shorter one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..files import atomic_write
from .annotation import Annotation
from .masks import VOID, davis_colours
from .procedural_render import Camera, Thing, coloured, random_colour, random_thing, sample, texture

SPLITS = ("train", "val", "test")
#: Smallest share of the frame, and of the object, that must be seen on frame 0 for it to be asked about.
_MIN_AREA, _MIN_VISIBLE = 0.005, 0.4


@dataclass(frozen=True)
class Prompt:
    """What a user could give on one frame to ask for one object.

    Attributes:
        mask: bool ``[height, width]``, the visible pixels.
        box: float32 ``[4]``, x0, y0, x1, y1 in pixels, the far edges included.
        points: float32 ``[3, 2]``, x and y in pixels: the innermost pixel, another inside, and one outside.
        labels: int32 ``[3]``: 1, 1, 0 (inside, inside, outside).
    """

    mask: NDArray[np.bool_]
    box: NDArray[np.float32]
    points: NDArray[np.float32]
    labels: NDArray[np.int32]

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_], seed: int = 0) -> Prompt:
        """Derive box and clicks from a mask.

        Args:
            mask: bool ``[height, width]`` with at least one pixel set.
            seed: Chooses the second and third click.

        Raises:
            DataError: The mask is empty.

        Example:
            >>> Prompt.from_mask(np.ones((4, 4), bool)).box
            array([0., 0., 4., 4.], dtype=float32)
        """
        rows, columns = np.nonzero(mask)
        if len(rows) == 0:
            raise DataError("cannot make a prompt from an empty mask; choose a frame where the object is visible")
        rng = np.random.default_rng(seed)
        y0, y1, x0, x1 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        inner = _innermost(mask[y0:y1, x0:x1]) + np.array([x0, y0])
        pick = int(rng.integers(len(rows)))
        outside_rows, outside_columns = np.nonzero(~mask)
        if len(outside_rows):
            other = int(rng.integers(len(outside_rows)))
            negative = (outside_columns[other], outside_rows[other])
        else:  # the object fills the frame: the only place outside is beyond its border
            negative = (-1, -1)
        points = np.array([inner, (columns[pick], rows[pick]), negative], np.float32)
        return cls(mask, np.array([x0, y0, x1, y1], np.float32), points, np.array([1, 1, 0], np.int32))


def _innermost(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The x, y of a pixel that survives the most erosions."""
    current = np.pad(mask, 1)
    while True:
        inner = current.copy()
        inner[1:-1, 1:-1] &= current[:-2, 1:-1] & current[2:, 1:-1] & current[1:-1, :-2] & current[1:-1, 2:]
        if not inner.any():
            break
        current = inner
    rows, columns = np.nonzero(current)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return np.array([columns[nearest] - 1, rows[nearest] - 1])


@dataclass(frozen=True)
class Sequence:
    """A video with its instance masks.

    Attributes:
        frames: uint8 ``[num_frames, height, width, 3]``, RGB.
        masks: uint8 ``[num_frames, height, width]``; 0 is background, other values are object ids.
        object_ids: The ids to ask about, all visible on frame 0. Their masks are empty while they are away.
        name: For example ``"val-00007"``.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    object_ids: tuple[int, ...]
    name: str

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.frames)

    @property
    def frame_names(self) -> tuple[str, ...]:
        """Those of the files that :func:`write_sequence` makes."""
        return tuple(f"{t:05d}" for t in range(len(self)))

    @property
    def annotated(self) -> tuple[int, ...]:
        """All frames."""
        return tuple(range(len(self)))

    def annotation(self, t: int) -> Annotation:
        """The objects' masks on a frame."""
        void = None if VOID in self.object_ids else VOID
        return Annotation.from_ids(self.masks[t], void=void, source=f"{self.name}, frame {t}")

    def prompt(self, object_id: int, frame: int = 0) -> Prompt:
        """Mask, box and clicks of one object on one frame.

        Raises:
            DataError: The id is unknown, or the object is not visible on that frame.
        """
        if object_id not in self.object_ids:
            raise DataError(f"{self.name}: no object {object_id}; there are {list(self.object_ids)}")
        mask = self.masks[frame] == object_id
        if not mask.any():
            raise DataError(f"{self.name}: object {object_id} is not visible on frame {frame}")
        return Prompt.from_mask(mask, seed=object_id)

    @cached_property
    def prompts(self) -> dict[int, Prompt]:
        """The prompts of every object on frame 0."""
        return {object_id: self.prompt(object_id) for object_id in self.object_ids}


def generate_sequence(
    split: str,
    index: int,
    *,
    size: tuple[int, int] = (96, 96),
    num_frames: int = 16,
    stride: int = 1,
    seed: int = 0,
) -> Sequence:
    """Generate one video; the same arguments always give the same bits.

    Args:
        split: "train", "val" or "test". No two splits share a random stream.
        index: Which video of the split, 0 or more; there is no last one.
        size: Height and width in pixels, each 16 or more.
        num_frames: Number of frames, 1 or more.
        stride: Keep every ``stride``-th frame only, so that everything moves faster.
        seed: Another value is another data set.

    Returns:
        The sequence, with two to five objects that are visible on frame 0.

    Raises:
        DataError: An argument is out of range.

    Example:
        >>> sequence = generate_sequence("val", 0, num_frames=4)
        >>> sequence.frames.shape, sequence.masks.shape
        ((4, 96, 96, 3), (4, 96, 96))
    """
    height, width = size
    if split not in SPLITS:
        raise DataError(f"split must be one of {list(SPLITS)}, got {split!r}")
    if min(index, seed) < 0 or min(num_frames, stride) < 1 or min(size) < 16:
        raise DataError(
            "index and seed must be 0 or more, num_frames and stride 1 or more, size at least 16 by 16; got "
            f"index={index}, seed={seed}, num_frames={num_frames}, stride={stride}, size={size}"
        )
    for attempt in range(100):
        key = (SPLITS.index(split), index, attempt)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
        scene = _Scene(rng, height, width)
        if len(scene.object_ids) >= 2:
            break
    else:  # pragma: no cover - about one scene in ten is refused, so a hundred in a row do not happen
        raise DataError(f"no usable scene for {split} {index} at size {size}; choose a larger size")
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    masks = np.empty((num_frames, height, width), np.uint8)
    for t in range(num_frames):
        frames[t], masks[t] = scene.render(t * stride)
    return Sequence(frames, masks, scene.object_ids, f"{split}-{index:05d}")


def generate_split(
    split: str, count: int, *, size: tuple[int, int] = (96, 96), num_frames: int = 16, seed: int = 0
) -> Iterator[Sequence]:
    """Yield the first ``count`` sequences of a split; arguments as in :func:`generate_sequence`."""
    for index in range(count):
        yield generate_sequence(split, index, size=size, num_frames=num_frames, seed=seed)


class _Scene:
    """The things in front of the camera, from back to front, and which of them are asked about."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.shape = height, width
        self.camera = Camera.random(rng)
        base, contrast = random_colour(rng), float(rng.uniform(0.2, 0.7))
        other = base + contrast * (random_colour(rng) - base)
        third = base + contrast * (random_colour(rng) - base)
        self.background = coloured(texture(64, rng, float(rng.uniform(1.0, 1.8))), base, other)
        self.background += (third - base) * texture(64, rng)[..., None] * 0.5
        self.background_scale = np.float32(rng.uniform(0.5, 1.1))
        self.background_offset = rng.uniform(0, 1, 2).astype(np.float32)
        self.noise, self.flicker = float(rng.uniform(1, 6)), float(rng.uniform(0, 0.04))
        self.noise_seed = int(rng.integers(2**31))
        self.things, asked = self._things(rng, base)
        # Frame 0 decides: what is hardly seen there becomes clutter.
        _, ids, areas = self._draw(0)
        visible = np.bincount(ids.ravel(), minlength=len(self.things) + 1)[1:]
        enough = (visible >= _MIN_AREA * height * width) & (visible >= _MIN_VISIBLE * np.array(areas))
        kept = [i for i in range(len(self.things)) if asked[i] and enough[i]]
        self.relabel = np.zeros(len(self.things) + 1, np.uint8)
        for identity, thing in enumerate(kept, start=1):
            self.relabel[thing + 1] = identity
        self.object_ids = tuple(range(1, len(kept) + 1))

    def _things(self, rng: np.random.Generator, backdrop: NDArray[np.float32]) -> tuple[list[Thing], list[bool]]:
        count, clutter = int(rng.integers(2, 6)), int(rng.integers(0, 3))
        span = np.array([self.shape[1], self.shape[0]]) / min(self.shape) * 0.4
        homes: list[np.ndarray] = []
        palette: list[tuple[np.ndarray, np.ndarray]] = []
        for _ in range(count + clutter):
            candidates = rng.uniform(-1, 1, (6, 2)) * span
            if homes:  # the candidate farthest from the others, so that few are hidden from the start
                gaps = np.linalg.norm(candidates[:, None] - np.array(homes)[None], axis=-1).min(1)
                homes.append(candidates[int(np.argmax(gaps))])
            else:
                homes.append(candidates[0])
            if palette and rng.random() < 0.3:  # a look-alike of an earlier object
                first, second = palette[int(rng.integers(len(palette)))]
                palette.append((first + rng.normal(0, 8, 3), second + rng.normal(0, 8, 3)))
            else:
                first = random_colour(rng, backdrop)
                palette.append((first, first + float(rng.uniform(0.15, 0.8)) * (random_colour(rng) - first)))
        asked = [True] * count + [False] * clutter
        things = [
            random_thing(rng, (float(home[0]), float(home[1])), colours, clutter=not ask)
            for home, colours, ask in zip(homes, palette, asked, strict=True)
        ]
        order = rng.permutation(len(things))
        return [things[i] for i in order], [asked[i] for i in order]

    def _draw(self, t: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], list[int]]:
        height, width = self.shape
        side = min(height, width)
        pan_x, pan_y, zoom, roll = self.camera.at(t)
        x = ((np.arange(width, dtype=np.float32) + np.float32(0.5 - width / 2)) / side)[None] - np.float32(pan_x)
        y = ((np.arange(height, dtype=np.float32) + np.float32(0.5 - height / 2)) / side)[:, None] - np.float32(pan_y)
        cos, sin = np.float32(np.cos(roll) / zoom), np.float32(np.sin(roll) / zoom)
        u = (cos * x + sin * y) * self.background_scale + self.background_offset[0]
        v = (cos * y - sin * x) * self.background_scale + self.background_offset[1]
        frame = sample(self.background, u, v)
        ids = np.zeros(self.shape, np.uint8)
        areas = [
            thing.draw(frame, ids, identity, t, self.camera) for identity, thing in enumerate(self.things, start=1)
        ]
        return frame, ids, areas

    def render(self, t: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """RGB frame and instance mask at time ``t``."""
        frame, ids, _ = self._draw(t)
        rng = np.random.default_rng((self.noise_seed, t))
        frame *= np.float32(1 + self.flicker * rng.normal())
        frame += rng.standard_normal(frame.shape, dtype=np.float32) * np.float32(self.noise)
        return np.clip(frame, 0, 255).astype(np.uint8), self.relabel[ids]


def write_sequence(sequence: Sequence, root: str | os.PathLike[str]) -> None:
    """Write a sequence as DAVIS stores it, so that SAM2's own tools can read it.

    Frames become ``JPEGImages/<name>/00000.jpg`` (quality 95), masks ``Annotations/<name>/00000.png`` with a
    palette.

    Args:
        sequence: What to write.
        root: The data set's folder; made where it does not exist.

    Raises:
        QSAM2Error: A file cannot be written.

    Example:
        >>> write_sequence(generate_sequence("test", 0, num_frames=2), "davis-like")
    """
    images = Path(root) / "JPEGImages" / sequence.name
    annotations = Path(root) / "Annotations" / sequence.name
    for t, (frame, mask) in enumerate(zip(sequence.frames, sequence.masks, strict=True)):
        with atomic_write(images / f"{t:05d}.jpg") as temporary:
            Image.fromarray(frame).save(temporary, format="JPEG", quality=95)
        palette_image = Image.fromarray(mask, mode="P")
        palette_image.putpalette(davis_palette())
        with atomic_write(annotations / f"{t:05d}.png") as temporary:
            palette_image.save(temporary, format="PNG")


def davis_palette() -> bytes:
    """The 256-colour palette of the PASCAL VOC and DAVIS annotations: 768 bytes, RGB."""
    return davis_colours().tobytes()
