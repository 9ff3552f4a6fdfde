"""Stills and clips out of a library: photographs as they are, moved, and with things put in front of them."""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ..procedural import Sequence
from .library import Library, pick_object, trimmed
from .looks import Camera, Pixels, light, recolour
from .motion import Affine, bend, smooth_path, source_map

#: ``photograph``: one with its own masks; ``still``: with things in front; ``pair``: a photograph bent and moved over
#: time; ``clip``: things that move in front of a photograph that moves.
SceneKind = Literal["photograph", "still", "pair", "clip"]
SCENE_KINDS: tuple[SceneKind, ...] = get_args(SceneKind)

#: Least visible part of the first frame that makes an object one to ask about.
_SMALLEST = 0.0008


def draw_scene(
    kind: SceneKind, library: Library, rng: np.random.Generator, *, size: int = 128, frames: int = 4
) -> Sequence:
    """Draw one scene.

    Args:
        kind: See :data:`SceneKind`; ``photograph`` and ``still`` have one frame.
        library: What to draw from.
        rng: Every draw comes from it.
        size: Height and width in pixels.
        frames: How many frames.

    Returns:
        Frames, masks and the ids that are visible on the first frame, at least one.

    Raises:
        DataError: The kind is unknown, or a file cannot be read.

    Example:
        >>> scene = draw_scene("clip", Library.open("realdata/train"), np.random.default_rng(0))
    """
    if kind not in SCENE_KINDS:
        raise DataError(f"kind must be one of {list(SCENE_KINDS)}, got {kind!r}")
    frames = frames if kind in ("pair", "clip") else 1
    for _ in range(20):
        images, masks = _compose(kind, library, rng, size, frames)
        areas = np.bincount(masks[0].ravel(), minlength=256)[1:]
        ids = tuple(int(identity) + 1 for identity in np.nonzero(areas >= max(_SMALLEST * size * size, 16))[0])
        if ids:
            return Sequence(images, masks, ids, kind)
    raise DataError("no scene with a visible object came out of 20 draws; are the masks and cut-outs empty?")


def _compose(
    kind: SceneKind, library: Library, rng: np.random.Generator, size: int, frames: int
) -> tuple[Pixels, Pixels]:
    own_masks = kind in ("photograph", "pair") or rng.random() < 0.4
    pan = [smooth_path(rng, frames, *_pace(rng, 0.03)) for _ in range(2)]
    images, masks = _backdrop(kind, library, rng, size, frames, pan, own_masks)
    count = {"photograph": 0, "pair": int(rng.random() < 0.3), "still": int(rng.integers(1, 8))}.get(
        kind, int(rng.integers(1, 5))
    )
    sprites = [_thing(library, rng) for _ in range(count)]
    if sprites and rng.random() < 0.25:
        sprites.append(recolour(rng, sprites[0], 0.3))  # a twin, to be told apart by place and motion
    for number, sprite in enumerate(sprites):
        _paste(images, masks, sprite, 200 + number, rng, pan, smallest=0.05 if kind == "still" else 0.1)
    camera = Camera(rng, frames, size)
    for t in range(frames):
        images[t] = camera(images[t], t)
    if frames > 1 and rng.random() < 0.5:
        images, masks = images[::-1].copy(), masks[::-1].copy()
    return images, masks


def _pace(rng: np.random.Generator, speed: float) -> tuple[float, float]:
    """Speed and tremble: many things stand nearly still, a few are fast."""
    factor = float(rng.choice([0.15, 0.6, 1.0, 1.8]))
    return speed * factor, speed * 0.25 * float(rng.random() < 0.3)


def _backdrop(
    kind: SceneKind,
    library: Library,
    rng: np.random.Generator,
    size: int,
    frames: int,
    pan: list[NDArray[np.float64]],
    own_masks: bool,
) -> tuple[Pixels, Pixels]:
    """A photograph that fills the frames, and the ids of its objects (0 where it has none to ask about)."""
    ids: Pixels | None
    if own_masks:
        image, ids = library.photograph(rng)
        box = _box_around(rng, ids)
    else:
        image, ids = library.background(rng), None
        box = _any_box(rng, image.shape)
    if rng.random() < 0.5:
        image = cv2.flip(image, 1)  # type: ignore[assignment]
        ids = None if ids is None else cv2.flip(ids, 1)  # type: ignore[assignment]
        box = (image.shape[1] - box[0], box[1], box[2], box[3])
    shrink = min(1.25 * size / min(box[2], box[3]), 1.0)
    if shrink < 1:
        new = (max(round(image.shape[1] * shrink), 2), max(round(image.shape[0] * shrink), 2))
        image = cv2.resize(image, new, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        ids = None if ids is None else cv2.resize(ids, new, interpolation=cv2.INTER_NEAREST)  # type: ignore[assignment]
        box = (box[0] * shrink, box[1] * shrink, box[2] * shrink, box[3] * shrink)
    image = recolour(rng, image)
    height, width = image.shape[:2]
    moving = frames > 1
    angle = rng.normal(0, 0.08) + smooth_path(rng, frames, *(_pace(rng, 0.03) if moving else (0.0, 0.0)))
    zoom = np.exp(smooth_path(rng, frames, *(_pace(rng, 0.03) if moving else (0.0, 0.0))))
    off_x, off_y = (width / 2 - box[0]) / box[2], (height / 2 - box[1]) / box[3]
    motion = Affine(
        x=0.5 + pan[0] + zoom * (np.cos(angle) * off_x - np.sin(angle) * off_y),
        y=0.5 + pan[1] + zoom * (np.sin(angle) * off_x + np.cos(angle) * off_y),
        width=zoom * width / box[2],
        height=zoom * height / box[3],
        angle=angle,
        shear=rng.normal(0, 0.05) + smooth_path(rng, frames, 0.01 if moving else 0.0),
    )
    grids = None
    if kind == "pair" or rng.random() < 0.2:
        grids = bend(rng, frames, float(rng.uniform(0.005, 0.03)), knots=int(rng.integers(4, 8)))
    images = np.empty((frames, size, size, 3), np.uint8)
    masks = np.zeros((frames, size, size), np.uint8)
    for t in range(frames):
        matrix = motion.matrix(t, size, (height, width))
        place = source_map(matrix, size, (height, width), None if grids is None else grids[t])
        border = cv2.BORDER_REFLECT if ids is None else cv2.BORDER_REPLICATE
        images[t] = cv2.remap(image, place, None, cv2.INTER_LINEAR, borderMode=border)  # type: ignore[call-overload]
        if ids is not None:
            masks[t] = cv2.remap(ids, place, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)  # type: ignore[call-overload]
    return images, masks


def _extent(rng: np.random.Generator, smallest: float, largest: float) -> float:
    """How much of the picture's side an object spans: every order of size, and half of them large."""
    if rng.random() < 0.5:
        return float(rng.uniform(0.3, largest))
    return float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))


Box = tuple[float, float, float, float]


def _box_around(rng: np.random.Generator, ids: Pixels) -> Box:
    """A part of a photograph, (centre x, centre y, width, height), in which one object is of random size."""
    left, top, across, down = cv2.boundingRect((ids == pick_object(rng, ids)).astype(np.uint8))
    extent = float(max(across, down))
    height, width = ids.shape
    side = max(extent / _extent(rng, 0.06, 1.05), 40.0)
    stretch = np.exp(rng.normal(0, 0.2))
    w, h = min(side * stretch, width), min(side / stretch, height)
    u, v = rng.uniform(0.3, 0.7, 2)
    x = left + across / 2 + (u - 0.5) * w
    y = top + down / 2 + (v - 0.5) * h
    return float(np.clip(x, w / 2, width - w / 2)), float(np.clip(y, h / 2, height - h / 2)), float(w), float(h)


def _any_box(rng: np.random.Generator, shape: tuple[int, ...]) -> Box:
    """A random part of a background."""
    height, width = shape[:2]
    w, h = width * rng.uniform(0.4, 0.95), height * rng.uniform(0.4, 0.95)
    w, h = min(w, 1.7 * h), min(h, 1.7 * w)
    return float(rng.uniform(w / 2, width - w / 2)), float(rng.uniform(h / 2, height - h / 2)), float(w), float(h)


def _thing(library: Library, rng: np.random.Generator) -> Pixels:
    """Something to put in front of a photograph: an object, a scrap, or two such things as one.

    What has one colour could be found by it. Things of several parts, and none alike, are wholes only by their box.
    """
    draw = rng.random()
    if draw < 0.54:
        return library.sprite(rng)
    if draw < 0.80:
        return _scrap(library, rng)
    behind, front = (library.sprite(rng) if rng.random() < 0.7 else _scrap(library, rng) for _ in range(2))
    return trimmed(_joined(behind, front, rng))


def _joined(behind: Pixels, front: Pixels, rng: np.random.Generator) -> Pixels:
    """Two sprites as one: the second, smaller, over the border of the first."""
    scale = 200 / max(behind.shape[:2])
    behind = _resized(behind, scale)
    front = _resized(front, max(behind.shape[:2]) * rng.uniform(0.35, 0.9) / max(front.shape[:2]))
    height, width = behind.shape[:2]
    canvas = np.zeros((height + 2 * front.shape[0], width + 2 * front.shape[1], 4), np.uint8)
    canvas[front.shape[0] : front.shape[0] + height, front.shape[1] : front.shape[1] + width] = behind
    angle = rng.uniform(0, 2 * np.pi)
    y = int(front.shape[0] / 2 + height * (0.5 + 0.4 * np.sin(angle)))
    x = int(front.shape[1] / 2 + width * (0.5 + 0.4 * np.cos(angle)))
    place = canvas[y : y + front.shape[0], x : x + front.shape[1]]
    share = front[..., 3:].astype(np.float32) / 255
    place[..., :3] = (place[..., :3] * (1 - share) + front[..., :3] * share).astype(np.uint8)
    place[..., 3] = np.maximum(place[..., 3], front[..., 3])
    return canvas


def _resized(sprite: Pixels, scale: float) -> Pixels:
    """A sprite of another size, whose colours take nothing of what is transparent."""
    new = (max(round(sprite.shape[1] * scale), 2), max(round(sprite.shape[0] * scale), 2))
    small = cv2.resize(_premultiplied(sprite), new, interpolation=cv2.INTER_AREA)
    strength = np.maximum(small[..., 3:], 1).astype(np.float32) / 255
    return np.dstack([np.minimum(small[..., :3] / strength, 255).astype(np.uint8), small[..., 3]])


def _scrap(library: Library, rng: np.random.Generator) -> Pixels:
    """A piece of a photograph in a random shape, such as no set of objects has: whole by its outline alone."""
    image = library.background(rng)
    box = _any_box(rng, image.shape)
    part = cv2.getRectSubPix(image, (max(int(box[2]), 1), max(int(box[3]), 1)), (box[0], box[1]))
    part = cv2.resize(part, (160, 160), interpolation=cv2.INTER_AREA)
    alpha = np.zeros((160, 160), np.uint8)
    width = rng.uniform(0.25, 1.0) if rng.random() < 0.5 else 1.0
    shape = rng.random()
    if shape < 0.2:
        cv2.rectangle(alpha, (round(80 - 78 * width), 2), (round(80 + 78 * width), 157), 255, -1)
    elif shape < 0.4:
        cv2.ellipse(alpha, (80, 80), (round(78 * width), 78), 0, 0, 360, 255, -1)
    elif shape < 0.6:
        corners = 80 + 78 * rng.uniform(-1, 1, (int(rng.integers(3, 9)), 2)) * [width, 1]
        cv2.fillConvexPoly(alpha, cv2.convexHull(corners.astype(np.int32)), 255)  # type: ignore[call-overload]
    else:
        field = cv2.resize(rng.normal(0, 1, (6, 6)).astype(np.float32), (160, 160), interpolation=cv2.INTER_CUBIC)
        y, x = np.mgrid[-1:1:160j, -1:1:160j]
        hill = 1.1 - 1.6 * np.hypot(x * rng.choice([1, 1, 4]), y)
        alpha = (255 * np.clip(8 * (0.5 * field + hill), 0, 1)).astype(np.uint8)
    return trimmed(recolour(rng, np.dstack([part, alpha]), 1.5))


def _premultiplied(sprite: Pixels) -> Pixels:
    """Colours times alpha, which can be averaged without the colours of what is transparent."""
    alpha = sprite[..., 3:].astype(np.float32) / 255
    return np.dstack([(sprite[..., :3] * alpha).astype(np.uint8), sprite[..., 3]])


def _paste(
    images: Pixels,
    masks: Pixels,
    sprite: Pixels,
    identity: int,
    rng: np.random.Generator,
    pan: list[NDArray[np.float64]],
    smallest: float,
) -> None:
    """Put a sprite in front of what is there, frame by frame, in place; it spans at least ``smallest`` of the side."""
    frames, size = images.shape[:2]
    if rng.random() < 0.5:
        sprite = cv2.flip(sprite, 1)  # type: ignore[assignment]
    extent = _extent(rng, smallest, 0.95)
    height, width = sprite.shape[:2]
    stretch = np.exp(rng.normal(0, 0.15))
    unit = extent / max(height, width)
    shrink = min(1.25 * extent * size / max(height, width), 1.0)
    if shrink < 1:
        sprite = _resized(sprite, shrink)
    layer = _premultiplied(recolour(rng, sprite))
    moving = frames > 1
    speed = (lambda base: _pace(rng, base)) if moving else (lambda base: (0.0, 0.0))
    tilt = rng.normal(0, 0.25) if rng.random() < 0.8 else rng.uniform(-np.pi, np.pi)
    motion = Affine(
        x=rng.uniform(0.1, 0.9) + pan[0] + smooth_path(rng, frames, *speed(0.05)),
        y=rng.uniform(0.1, 0.9) + pan[1] + smooth_path(rng, frames, *speed(0.045)),
        width=unit * width * stretch * np.exp(smooth_path(rng, frames, *speed(0.05))),
        height=unit * height / stretch * np.exp(smooth_path(rng, frames, *speed(0.05))),
        angle=tilt + smooth_path(rng, frames, *speed(0.08)),
        shear=rng.normal(0, 0.1) + smooth_path(rng, frames, *speed(0.03)),
    )
    grids = bend(rng, frames, float(rng.uniform(0.005, 0.04))) if rng.random() < 0.5 else None
    shades = light(rng, frames, 0.2) if rng.random() < 0.4 else None
    for t in range(frames):
        matrix = motion.matrix(t, size, layer.shape[:2])
        place = source_map(matrix, size, layer.shape[:2], None if grids is None else grids[t])
        put = cv2.remap(layer, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)  # type: ignore[call-overload]
        colour = put[..., :3].astype(np.float32)
        if shades is not None:
            colour *= cv2.resize(shades[t], (size, size), interpolation=cv2.INTER_CUBIC)[..., None]
        behind = images[t] * (1 - put[..., 3:].astype(np.float32) / 255)
        images[t] = np.clip(behind + colour, 0, 255).astype(np.uint8)
        masks[t][put[..., 3] > 127] = identity
