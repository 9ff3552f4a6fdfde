"""Masks on photographs by the float model and by quantized ones, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base

from ..convert import convert_qsam2
from ..data.photographs import OTHERS, PHOTOGRAPHS, Photograph
from ..evaluation.miou import mask_iou
from ..reporting.notes import note
from ..reporting.overlay import draw_masks, draw_prompts, side_by_side
from ..segmentation import ObjectPrompt, segment_image
from .models import load_model

MODEL = "embedded-256"


def draw_photographs(presets: Sequence[str]) -> tuple[Image.Image, dict[str, float]]:
    """Segment :data:`~qsam2_ao.data.photographs.PHOTOGRAPHS` by ``embedded-256`` in float and by presets of it.

    Nothing is trained: the presets are calibrated on :data:`~qsam2_ao.data.photographs.OTHERS`.

    Args:
        presets: Of the columns beside float.

    Returns:
        The picture: boxes, then each model's masks; and preset -> mean IoU of its masks with the float model's, in
        percent.

    Raises:
        MissingPackageError: scikit-image is not installed.
    """
    model = load_model(MODEL)
    pictures = [photograph.read() for photograph in PHOTOGRAPHS]
    models: dict[str, SAM2Base] = {"float": model}
    for preset in presets:
        note(f"photographs: calibrating {MODEL} for {preset}")
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
        for preset in presets
    }
    return side_by_side(cells, titles, columns=1 + len(models)), agreement
