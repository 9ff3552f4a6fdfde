"""How close a quantized model is to the float one: overlap of the masks, and noise in the image features."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DataError
from ..predictors import eval_mode, image_predictor
from ..progress import tqdm
from .image import ImagePrompt, ImageSample, predict_objects
from .miou import mask_iou


@dataclass(frozen=True)
class Agreement:
    """How close a model's answers are to the reference's.

    Attributes:
        mask_iou: Mean IoU of the two models' masks, in percent.
        sqnr: Signal-to-quantization-noise ratio in decibels of each image feature map, "stride 4" to "stride
            16"; infinite where the features are equal.
        num_images: How many images.
        num_objects: How many objects in them.
    """

    mask_iou: float
    sqnr: dict[str, float]
    num_images: int
    num_objects: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which has no infinity: equal features are ``None``."""
        return {
            "mask_iou": self.mask_iou,
            "sqnr": {name: value if math.isfinite(value) else None for name, value in self.sqnr.items()},
            "num_images": self.num_images,
            "num_objects": self.num_objects,
        }


def sqnr(signal: Tensor, other: Tensor) -> float:
    """Signal-to-quantization-noise ratio, 10 log10(|signal|^2 / |other - signal|^2).

    Args:
        signal: The reference, any shape and floating-point type.
        other: The same with noise.

    Returns:
        Decibels; infinite where the two are equal.

    Example:
        >>> import torch
        >>> round(sqnr(torch.tensor([10.0]), torch.tensor([11.0])), 6)
        20.0
    """
    return _decibels(*_powers(signal, other))


def _powers(signal: Tensor, other: Tensor) -> tuple[float, float]:
    reference = signal.detach().double()
    noise = other.detach().double() - reference
    return float(reference.square().sum()), float(noise.square().sum())


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def image_agreement(
    model: nn.Module,
    reference: nn.Module,
    samples: Iterable[ImageSample],
    *,
    prompt: ImagePrompt = "box",
    progress: bool = False,
) -> Agreement:
    """Give two models the same images and prompts and compare features and masks.

    Args:
        model: A model of the SAM2Base family, for example a quantized one.
        reference: The model to compare with, for example the float one.
        samples: The pictures; prompts are derived from their masks.
        prompt: "box", "click", "3-click" or "5-click"; clicks after the first depend on each model's own answers.
        progress: Show a progress bar.

    Returns:
        The agreement.

    Raises:
        DataError: There are no samples with objects.

    Example:
        >>> image_agreement(quantized, model, samples).mask_iou > 0.5
        True
    """
    ious: list[NDArray[np.float64]] = []
    signal, noise = np.zeros(3), np.zeros(3)
    with eval_mode(model), eval_mode(reference):
        predictors = image_predictor(reference), image_predictor(model)
        for sample in tqdm(samples, desc="agreement", unit="image", disable=not progress):
            features, masks = [], []
            for predictor in predictors:
                predictor.set_image(sample.image)
                held = predictor._features
                features.append([*held["high_res_feats"], held["image_embed"]])
                masks.append(predict_objects(predictor, sample.masks, prompt))
            ious.append(mask_iou(*masks))
            powers = [_powers(a, b.to(a.device)) for a, b in zip(*features, strict=True)]
            levels = len(powers)
            signal[:levels] += [power for power, _ in powers]
            noise[:levels] += [power for _, power in powers]
    objects = sum(map(len, ious))
    if not objects:
        raise DataError("there are no samples with objects to compare on")
    stride = getattr(model, "backbone_stride", 16)
    names = [f"stride {stride >> (levels - 1 - level)}" for level in range(levels)]
    values = {name: _decibels(float(s), float(n)) for name, s, n in zip(names, signal, noise, strict=False)}
    return Agreement(100 * float(np.concatenate(ious).mean()), values, len(ious), objects)
