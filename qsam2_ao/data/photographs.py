"""Photographs that every machine with scikit-image has, and that no model of this package was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..optional import needed

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Photograph:
    """A photograph of scikit-image, and what is asked for on it.

    Attributes:
        name: Of the function in ``skimage.data``.
        boxes: Around the objects, in pixels of the crop.
        crop: The part that is shown, (left, top, right, bottom) in pixels; all of it by default.
    """

    name: str
    boxes: tuple[Box, ...] = ()
    crop: tuple[int, int, int, int] | None = None

    def read(self) -> NDArray[np.uint8]:
        """The picture, uint8 ``[height, width, 3]``."""
        pixels = np.asarray(getattr(needed("skimage.data"), self.name)())
        left, top, right, bottom = self.crop or (0, 0, pixels.shape[1], pixels.shape[0])
        return np.asarray(Image.fromarray(pixels[top:bottom, left:right]).convert("RGB"))


#: Squares, so that they are shown as they are.
PHOTOGRAPHS = (
    Photograph("coins", ((128, 12, 172, 54), (116, 74, 167, 125), (186, 135, 255, 199)), (128, 20, 384, 276)),
    Photograph("astronaut", ((22, 12, 372, 511),)),
    Photograph("rocket", ((201, 122, 229, 410),), (107, 0, 534, 427)),
)
#: Further ones, to calibrate on.
OTHERS = ("chelsea", "hubble_deep_field", "immunohistochemistry", "retina", "moon", "text", "clock", "page")
