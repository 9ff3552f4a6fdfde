"""How a procedural object looks and moves: outlines, textures, paths, and drawing them antialiased.

Lengths are in units of the frame's shorter side, times in frames, angles in radians, colours in 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

FAMILIES = ("ellipse", "polygon", "star", "blob", "superformula", "ring", "crescent", "bar")
_ANGLES = 256
_THETA = (np.arange(_ANGLES) * (2 * np.pi / _ANGLES)).astype(np.float32)


def outline(family: str, rng: np.random.Generator) -> Array:
    """Radius of a closed outline over the angle, scaled to the area of the unit circle.

    Args:
        family: One of :data:`FAMILIES`. "ring" and "crescent" give their outer outline.
        rng: Source of the shape's parameters.

    Returns:
        float32 ``[256]``, all positive.
    """
    theta = _THETA
    if family in ("ellipse", "ring", "crescent"):
        ratio = rng.uniform(0.6, 1.0)
        radius = 1 / np.sqrt(np.cos(theta) ** 2 + (np.sin(theta) / ratio) ** 2)
    elif family == "polygon":
        sector = 2 * np.pi / rng.integers(3, 7)
        radius = 1 / np.cos(np.mod(theta, sector) - sector / 2)
    elif family == "star":
        count, depth = rng.integers(4, 7), rng.uniform(0.25, 0.4)
        radius = 1 + depth * np.abs(2 * np.mod(theta * count / (2 * np.pi), 1) - 1) * 2 - depth
    elif family == "superformula":
        count, power = rng.integers(3, 7), rng.uniform(2.5, 7.0)
        wave = count * theta / 4
        radius = (np.abs(np.cos(wave)) ** power + np.abs(np.sin(wave)) ** power) ** (-1 / rng.uniform(4, 9))
    elif family == "bar":
        length = rng.uniform(0.35, 0.6)
        radius = np.minimum(1 / (np.abs(np.cos(theta)) + 1e-6), length / (np.abs(np.sin(theta)) + 1e-6))
    else:  # blob: a few random harmonics
        order = np.arange(2, 6)[:, None]
        size = rng.normal(0, 0.13, (4, 1)) / np.sqrt(order - 1)
        radius = 1 + (size * np.cos(order * theta + rng.uniform(0, 2 * np.pi, (4, 1)))).sum(0)
        radius = np.maximum(radius, 0.35)
    return (radius / np.sqrt(np.mean(radius**2))).astype(np.float32)


def texture(side: int, rng: np.random.Generator, smoothness: float | None = None) -> Array:
    """A periodic grey texture: 1/f noise, stripes, checks or dots, with soft edges.

    Args:
        side: Height and width of the tile in texels.
        rng: Source of the pattern's parameters.
        smoothness: Spectral exponent of the noise; None picks a pattern at random.

    Returns:
        float32 ``[side, side]`` in 0..1.
    """
    kind = 0 if smoothness is not None else int(rng.integers(0, 5))
    if kind <= 1:
        exponent = rng.uniform(1.2, 2.2) if smoothness is None else smoothness
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) * side
        spectrum = np.fft.rfft2(rng.normal(size=(side, side)))
        tile = np.fft.irfft2(spectrum / np.maximum(frequency, 1) ** exponent, s=(side, side))
        tile = 0.5 + 0.3 * (tile - tile.mean()) / (tile.std() + 1e-9)
    else:
        y, x = np.mgrid[0:side, 0:side].astype(np.float32) * (2 * np.pi / side)
        a, b = rng.integers(1, 5), rng.integers(1, 5)
        phase = rng.uniform(0, 2 * np.pi)
        if kind == 2:
            wave = np.sin(a * x + b * y + phase)
        elif kind == 3:
            wave = np.sin((a + 1) * x + phase) * np.sin((a + 1) * y)
        else:
            wave = np.sin((b + 1) * x + phase) + np.sin((b + 1) * y) - 0.8
        tile = 1 / (1 + np.exp(-4 * wave))
    return np.clip(tile, 0, 1).astype(np.float32)


def sample(tile: Array, u: Array, v: Array) -> Array:
    """Bilinear look-up in a periodic tile.

    Args:
        tile: ``[side, side, channels]``.
        u: Column position in tiles (1.0 is one period), any shape.
        v: Row position, the same shape.

    Returns:
        float32 ``[*u.shape, channels]``.
    """
    side = tile.shape[0]
    flat = tile.reshape(side * side, -1)
    x, y = u * side, v * side
    x_floor, y_floor = np.floor(x), np.floor(y)
    fx, fy = (x - x_floor)[..., None], (y - y_floor)[..., None]
    x0, y0 = x_floor.astype(np.int32) % side, y_floor.astype(np.int32) % side
    x1, y1 = (x0 + 1) % side, (y0 + 1) % side
    y0, y1 = y0 * side, y1 * side
    result = flat.take(y0 + x0, 0) * ((1 - fx) * (1 - fy))  # `take` is far faster here than indexing
    result += flat.take(y0 + x1, 0) * (fx * (1 - fy))
    result += flat.take(y1 + x0, 0) * ((1 - fx) * fy)
    result += flat.take(y1 + x1, 0) * (fx * fy)
    return result


@dataclass(frozen=True)
class Wave:
    """A smooth oscillation ``amplitude * sin(rate * t + phase)``."""

    amplitude: float
    rate: float
    phase: float

    @classmethod
    def random(cls, rng: np.random.Generator, amplitude: float, speed: float) -> Wave:
        """A wave of the given amplitude whose steepest change per frame is ``speed``."""
        return cls(amplitude, speed / max(amplitude, 1e-6), float(rng.uniform(0, 2 * np.pi)))

    def __call__(self, t: float) -> float:
        """The value at frame ``t``."""
        return self.amplitude * float(np.sin(self.rate * t + self.phase))


@dataclass(frozen=True)
class Camera:
    """Pan, zoom and roll over time; it moves the background and every object alike."""

    pan_x: Wave
    pan_y: Wave
    zoom: Wave
    roll: Wave

    @classmethod
    def random(cls, rng: np.random.Generator) -> Camera:
        """A calm hand-held camera."""
        speed = float(rng.uniform(0, 0.02))
        return cls(
            pan_x=Wave.random(rng, float(rng.uniform(0.02, 0.15)), speed),
            pan_y=Wave.random(rng, float(rng.uniform(0.02, 0.1)), speed * 0.7),
            zoom=Wave.random(rng, float(rng.uniform(0.0, 0.12)), 0.01),
            roll=Wave.random(rng, float(rng.uniform(0.0, 0.12)), 0.01),
        )

    def at(self, t: float) -> tuple[float, float, float, float]:
        """Pan x, pan y, scale and roll at frame ``t``."""
        return self.pan_x(t), self.pan_y(t), float(np.exp(self.zoom(t))), self.roll(t)


@dataclass
class Thing:
    """One moving, textured object. Positions are relative to the frame's centre."""

    family: str
    radius: float
    table: Array
    tile: Array
    home: tuple[float, float]
    drift_x: Wave
    drift_y: Wave
    angle: float
    spin: float
    pulse: Wave
    stretch: Wave
    wobble: Wave
    wobble_order: int
    hole: float
    texels: float
    shade: float
    exit_direction: tuple[float, float]
    exit_period: float
    exit_length: float
    exit_start: float

    def centre(self, t: float) -> tuple[float, float]:
        """The centre at frame ``t``, with the excursion out of the frame and back."""
        x = self.home[0] + self.drift_x(t)
        y = self.home[1] + self.drift_y(t)
        if self.exit_length > 0:
            phase = np.mod(t - self.exit_start, self.exit_period) / self.exit_length
            if phase < 1:
                away = float(np.sin(np.pi * phase) ** 2)
                x += self.exit_direction[0] * away
                y += self.exit_direction[1] * away
        return x, y

    def coverage(self, x: Array, y: Array, t: float, scale: float) -> tuple[Array, Array, Array]:
        """How much of each pixel the object covers, and the object's own coordinates there.

        Args:
            x: Horizontal offsets from the object's centre, in its rotated frame, in object radii.
            y: Vertical offsets, the same shape.
            t: Frame time.
            scale: Pixels per object radius.

        Returns:
            Coverage in 0..1, and the local coordinates after deformation, all of ``x``'s shape.
        """
        squeeze = float(np.exp(self.stretch(t)))
        x, y = x / squeeze, y * squeeze
        rho = np.sqrt(x * x + y * y)
        table = self.table * (
            1 + self.wobble.amplitude * np.sin(self.wobble_order * _THETA + self.wobble.rate * t + self.wobble.phase)
        ).astype(np.float32)
        slope = (np.roll(table, -1) - np.roll(table, 1)) * np.float32(_ANGLES / (4 * np.pi))
        # The radial distance over-estimates the distance to a slanted edge by the slant's cosine.
        cosine = 1 / np.sqrt(1 + np.minimum((slope / table) ** 2, 4))
        position = np.arctan2(y, x) * np.float32(_ANGLES / (2 * np.pi)) + np.float32(_ANGLES)
        floor = position.astype(np.int32)
        fraction = position - floor
        floor %= _ANGLES
        following = (floor + 1) % _ANGLES
        radius = table[floor] * (1 - fraction) + table[following] * fraction
        distance = (rho - radius) * cosine[floor]
        if self.family == "ring":
            distance = np.maximum(distance, self.hole * radius - rho)
        elif self.family == "crescent":
            bite = np.sqrt((x - self.hole * 1.6) ** 2 + y * y)
            distance = np.maximum(distance, 0.8 - bite)
        return np.clip(0.5 - distance * np.float32(scale), 0, 1), x, y

    def draw(self, frame: Array, ids: NDArray[np.uint8], identity: int, t: float, camera: Camera) -> int:
        """Paint the object over ``frame`` and write ``identity`` where it covers over half a pixel.

        Args:
            frame: float32 ``[height, width, 3]``, changed in place.
            ids: uint8 ``[height, width]``, changed in place.
            identity: What to write to ``ids``.
            t: Frame time.
            camera: The camera's motion.

        Returns:
            The number of pixels inside the frame that the object covers before anything is drawn over it.
        """
        height, width = ids.shape
        side = min(height, width)
        pan_x, pan_y, zoom, roll = camera.at(t)
        world_x, world_y = self.centre(t)
        cos, sin = np.cos(roll), np.sin(roll)
        centre_x = width / 2 + side * zoom * (cos * world_x - sin * world_y + pan_x)
        centre_y = height / 2 + side * zoom * (sin * world_x + cos * world_y + pan_y)
        scale = side * zoom * self.radius * float(np.exp(self.pulse(t)))
        reach = scale * float(self.table.max()) * 1.5 + 2
        left, right = max(int(centre_x - reach), 0), min(int(centre_x + reach) + 1, width)
        top, bottom = max(int(centre_y - reach), 0), min(int(centre_y + reach) + 1, height)
        if left >= right or top >= bottom:
            return 0
        turn = self.angle + self.spin * t + roll
        cos, sin = np.float32(np.cos(turn) / scale), np.float32(np.sin(turn) / scale)
        x = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5 - centre_x)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - centre_y)
        alpha, local_x, local_y = self.coverage(cos * x + sin * y, cos * y - sin * x, t, scale)
        colour = sample(self.tile, local_x * np.float32(self.texels), local_y * np.float32(self.texels))
        colour *= (1 + np.float32(self.shade) * np.clip(local_x - local_y, -1.5, 1.5))[..., None]
        window = frame[top:bottom, left:right]
        window += alpha[..., None] * (colour - window)
        covered = alpha > 0.5
        ids[top:bottom, left:right][covered] = identity
        return int(covered.sum())


def random_colour(rng: np.random.Generator, away_from: Array | None = None) -> Array:
    """A random colour, float32 ``[3]``, at an RGB distance of 80 or more from ``away_from``."""
    colour = rng.uniform(20, 235, 3)
    while away_from is not None and np.linalg.norm(colour - away_from) < 80:
        colour = rng.uniform(20, 235, 3)
    return colour.astype(np.float32)


def coloured(tile: Array, first: Array, second: Array) -> Array:
    """Map a grey tile to the line between two colours: float32 ``[side, side, 3]``."""
    return first + tile[..., None] * (second - first)


def random_thing(
    rng: np.random.Generator,
    home: tuple[float, float],
    colours: tuple[Array, Array],
    *,
    clutter: bool = False,
) -> Thing:
    """Draw an object's shape, looks and motion.

    Args:
        rng: Source of randomness.
        home: The centre of its motion, relative to the frame's centre.
        colours: The two colours of its texture.
        clutter: Whether it is a small distractor that nobody asks about.

    Returns:
        The object.
    """
    family = FAMILIES[int(rng.integers(len(FAMILIES)))]
    radius = float(np.exp(rng.uniform(np.log(0.11), np.log(0.24))))
    if clutter:
        radius *= 0.55
    elif family in ("ring", "crescent"):
        radius = max(radius, 0.16)
    speed = float(rng.uniform(0.003, 0.04))
    leaves = bool(rng.random() < 0.15)
    norm = float(np.hypot(*home)) + 1e-3
    distance = 0.65 + radius
    return Thing(
        family=family,
        radius=radius,
        table=outline(family, rng),
        tile=coloured(texture(32, rng), *colours),
        home=home,
        drift_x=Wave.random(rng, float(rng.uniform(0.05, 0.3)), speed),
        drift_y=Wave.random(rng, float(rng.uniform(0.05, 0.3)), speed),
        angle=float(rng.uniform(0, 2 * np.pi)),
        spin=float(rng.normal(0, 0.06)),
        pulse=Wave.random(rng, float(rng.uniform(0, 0.22)), 0.025),
        stretch=Wave.random(rng, float(rng.uniform(0, 0.2)), 0.03),
        wobble=Wave(float(rng.uniform(0, 0.1)), float(rng.uniform(0.05, 0.3)), float(rng.uniform(0, 6.28))),
        wobble_order=int(rng.integers(2, 5)),
        hole=float(rng.uniform(0.42, 0.55)),
        texels=float(rng.uniform(0.15, 0.4)),
        shade=float(rng.uniform(0, 0.15)),
        exit_direction=(home[0] / norm * distance, home[1] / norm * distance),
        exit_period=float(rng.uniform(16, 30)),
        exit_length=float(rng.uniform(8, 14)) if leaves else 0.0,
        exit_start=float(rng.uniform(0, 30)),
    )
