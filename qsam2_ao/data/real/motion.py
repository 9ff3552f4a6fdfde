"""Smooth random motion: where each pixel of a frame comes from, over time."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def smooth_path(rng: np.random.Generator, frames: int, speed: float, shake: float = 0.0) -> NDArray[np.float64]:
    """One number over time: a drift, a swing and a tremble, 0 in the middle of the clip.

    Args:
        rng: The random generator.
        frames: How many frames.
        speed: Standard deviation of the change from frame to frame.
        shake: Standard deviation of what each frame adds of its own.
    """
    time = np.arange(frames) - (frames - 1) / 2
    drift = rng.normal(0, speed) * time
    rate, phase = rng.uniform(0.2, 1.2), rng.uniform(0, 2 * np.pi)
    swing = rng.normal(0, speed) * (np.sin(rate * time + phase) - np.sin(phase)) / rate
    tremble = rng.normal(0, shake, frames) if shake else np.zeros(frames)
    path: NDArray[np.float64] = drift + swing + tremble
    return path


@dataclass(frozen=True)
class Affine:
    """A motion in a frame's own units: the frame is 1 wide and 1 high.

    Attributes:
        x: Where the centre of the thing is, frame by frame.
        y: The same downwards.
        width: How wide it is, before it is turned.
        height: How high.
        angle: By how much it is turned, in radians.
        shear: Of the horizontal axis.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    width: NDArray[np.float64]
    height: NDArray[np.float64]
    angle: NDArray[np.float64]
    shear: NDArray[np.float64]

    def matrix(self, frame: int, size: int, source: tuple[int, int]) -> NDArray[np.float64]:
        """From a frame's pixels to the thing's: ``[2, 3]``."""
        height, width = source
        c, s = np.cos(self.angle[frame]), np.sin(self.angle[frame])
        turn = np.array([[c, -s], [s, c]]) @ np.array([[1, self.shear[frame]], [0, 1]])
        scale = np.diag([self.width[frame] * size / width, self.height[frame] * size / height])
        forward = turn @ scale
        inverse = np.linalg.inv(forward)
        centre = np.array([self.x[frame], self.y[frame]]) * size
        offset = np.array([width / 2, height / 2]) - inverse @ centre
        return np.hstack([inverse, offset[:, None]])


def bend(rng: np.random.Generator, frames: int, amount: float, knots: int = 4) -> list[Floats]:
    """Displacements on a coarse grid that change smoothly with time, as shares of the thing: ``[knots, knots, 2]``."""
    start = rng.normal(0, amount, (knots, knots, 2))
    end = rng.normal(0, amount, (knots, knots, 2))
    phase = np.linspace(0, rng.uniform(0.5, 2.0), frames)
    return [(np.cos(p) * start + np.sin(p) * end).astype(np.float32) for p in phase]


def source_map(matrix: NDArray[np.float64], size: int, source: tuple[int, int], grid: Floats | None) -> Floats:
    """For every pixel of a frame, the position in the thing's picture: float32 ``[size, size, 2]``.

    Args:
        matrix: What :meth:`Affine.matrix` gave.
        size: The frame's side.
        source: Height and width of the thing's picture.
        grid: What :func:`bend` gave for the frame, or None.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) + np.float32(0.5)
    m = matrix.astype(np.float32)
    u = m[0, 0] * x + m[0, 1] * y + m[0, 2]
    v = m[1, 0] * x + m[1, 1] * y + m[1, 2]
    if grid is not None:
        height, width = source
        # The grid is fixed to the thing and reaches a little beyond it.
        fine = cv2.resize(grid, (32, 32), interpolation=cv2.INTER_CUBIC)
        place = [np.clip(u / width * 31, 0, 31), np.clip(v / height * 31, 0, 31)]
        shift = cv2.remap(fine, place[0], place[1], cv2.INTER_LINEAR)
        u, v = u + shift[..., 0] * width, v + shift[..., 1] * height
    return np.dstack([u - 0.5, v - 0.5])
