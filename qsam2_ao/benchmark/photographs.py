"""Masks on real photographs by the float model and with 4-bit and 2-bit weights, side by side.

``python -m qsam2_ao.benchmark.photographs`` draws ``benchmarks/results/photographs.png``. The photographs are those
that come with scikit-image, which no model was trained on. Others of them are calibrated on; nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base

from ..convert import convert_qsam2
from ..evaluation.miou import mask_iou
from ..optional import needed
from ..reporting.notes import note
from ..reporting.overlay import draw_masks, draw_prompts, save_picture, side_by_side
from ..segmentation import ObjectPrompt, segment_image
from ..workflow.models import load_model

MODEL = "embedded-256"
PRESETS = ("w4a8", "w2a8")
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


def draw_photographs() -> tuple[Image.Image, dict[str, float]]:
    """Segment :data:`PHOTOGRAPHS` by every model.

    Returns:
        The picture: boxes, then each model's masks; and preset -> mean IoU of its masks with the float model's, in
        percent.

    Raises:
        MissingPackageError: scikit-image is not installed.
    """
    model = load_model(MODEL)
    pictures = [photograph.read() for photograph in PHOTOGRAPHS]
    models: dict[str, SAM2Base] = {"float": model}
    for preset in PRESETS:
        note(f"{preset}: calibrating")
        images = [Photograph(name).read() for name in OTHERS]
        models[preset] = convert_qsam2(model, preset, images, rounding="gptq", progress=False)
    cells, titles, masks = [], [], {}
    for photograph, picture in zip(PHOTOGRAPHS, pictures, strict=True):
        prompts = {number: ObjectPrompt(box=box) for number, box in enumerate(photograph.boxes, 1)}
        cells.append(draw_prompts(picture, (), photograph.boxes))
        titles.append(photograph.name)
        for name, quantized in models.items():
            logits, _ = segment_image(quantized, Image.fromarray(picture), prompts)
            found = masks[photograph.name, name] = np.stack([logits[number] > 0 for number in prompts])
            cells.append(draw_masks(picture, dict(zip(prompts, found, strict=True))))
            titles.append(name)
    agreement = {
        preset: 100
        * float(np.concatenate([mask_iou(masks[p.name, preset], masks[p.name, "float"]) for p in PHOTOGRAPHS]).mean())
        for preset in PRESETS
    }
    return side_by_side(cells, titles, columns=1 + len(models)), agreement


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m qsam2_ao.benchmark.photographs", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/photographs.png"))
    output = parser.parse_args(arguments).output
    sheet, agreement = draw_photographs()
    save_picture(sheet, output)
    print(f"{output}: " + ", ".join(f"{name} {value:.1f} % IoU with float" for name, value in agreement.items()))


if __name__ == "__main__":
    main()
