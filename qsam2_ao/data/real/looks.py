"""How pictures look: colours, light, blur, noise and compression."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def recolour(rng: np.random.Generator, pixels: Pixels, strength: float = 1.0) -> Pixels:
    """Change brightness, contrast, saturation and tint of an RGB (or RGBA) picture; alpha stays."""
    saturation = 0.0 if rng.random() < 0.08 * strength else np.exp(rng.normal(0, 0.25 * strength))
    gains = np.exp(rng.normal(0, 0.18 * strength) + rng.normal(0, 0.07 * strength, 3))
    contrast = np.exp(rng.normal(0, 0.15 * strength))
    gamma = np.exp(rng.normal(0, 0.15 * strength))
    grey = np.array([0.299, 0.587, 0.114])
    middle = float(np.array(cv2.mean(pixels)[:3]) @ grey)
    mix = gains[:, None] * contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    offset = gains * middle * (1 - contrast)
    colour = cv2.transform(np.ascontiguousarray(pixels[..., :3]), np.hstack([mix, offset[:, None]]))
    curve = (255 * (np.arange(256) / 255) ** gamma).round().astype(np.uint8)
    result = pixels.copy()
    result[..., :3] = cv2.LUT(colour, curve)
    return result


def light(rng: np.random.Generator, frames: int, strength: float = 0.25) -> NDArray[np.float32]:
    """Factors on a coarse grid that change with time: ``[frames, 3, 3]``."""
    start, change = rng.normal(0, strength, (3, 3)), rng.normal(0, strength / 4, (3, 3))
    time = np.linspace(0, 1, frames)[:, None, None]
    return np.exp(start + change * time).astype(np.float32)


class Camera:
    """What a camera does to every frame of a clip: light, blur, noise, compression; drawn once for the clip.

    Args:
        rng: The random generator; noise draws from it frame by frame.
        frames: How many frames.
        size: The frames' side in pixels: larger ones are blurred further.
    """

    def __init__(self, rng: np.random.Generator, frames: int, size: int) -> None:
        self.rng = rng
        reach = max(size / 192, 0.5)
        self.light = light(rng, frames) if rng.random() < 0.5 else None
        self.sigma = reach * float(rng.uniform(0.4, 1.4)) if rng.random() < 0.3 else 0.0
        self.sweep = 2 * int(reach * rng.uniform(1, 4)) + 1 if rng.random() < 0.15 else 0
        self.angle = float(rng.uniform(0, 180))
        self.noise = float(rng.uniform(1, 12)) if rng.random() < 0.4 else 0.0
        self.quality = int(rng.integers(25, 90)) if rng.random() < 0.5 else 0

    def __call__(self, frame: Pixels, index: int) -> Pixels:
        """One frame as the camera gives it."""
        size = frame.shape[1], frame.shape[0]
        if self.light is not None:
            field = cv2.resize(self.light[index], size, interpolation=cv2.INTER_CUBIC)
            frame = np.clip(frame * field[..., None], 0, 255).astype(np.uint8)
        if self.sigma:
            frame = cv2.GaussianBlur(frame, (0, 0), self.sigma)  # type: ignore[assignment]
        if self.sweep:
            kernel = np.zeros((self.sweep, self.sweep), np.float32)
            kernel[self.sweep // 2] = 1 / self.sweep
            turn = cv2.getRotationMatrix2D((self.sweep / 2 - 0.5, self.sweep / 2 - 0.5), self.angle, 1)
            kernel = cv2.warpAffine(kernel, turn, (self.sweep, self.sweep))  # type: ignore[assignment]
            frame = cv2.filter2D(frame, -1, kernel / max(float(kernel.sum()), 1e-3))  # type: ignore[assignment]
        if self.noise:
            noisy = frame + self.noise * self.rng.standard_normal(frame.shape, np.float32)
            frame = np.clip(noisy, 0, 255).astype(np.uint8)
        if self.quality:
            _, data = cv2.imencode(
                ".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, self.quality]
            )
            frame = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)  # type: ignore[assignment, arg-type]
        return frame
