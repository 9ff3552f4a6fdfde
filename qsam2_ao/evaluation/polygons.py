"""Photographs with YOLO polygons as samples for the evaluation of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..data.pictures import read_rgb
from ..data.real.pictures import list_files
from ..errors import DataError
from ..optional import needed
from .image import ImageSample


def read_polygons(
    folder: str | os.PathLike[str], *, count: int | None = None, per_image: int | None = None, seed: int = 0
) -> list[ImageSample]:
    """Photographs with YOLO polygons: ``images/NAME.*`` and ``labels/NAME.txt``, a line "class x y x y ..." each.

    Args:
        folder: Holds ``images`` and ``labels``; a photograph without a label file has no object and is left out.
        count: How many photographs; all by default.
        per_image: At most this many objects of each, chosen at random.
        seed: Chooses photographs and objects.

    Returns:
        The samples, with polygons of fewer than 16 pixels left out.

    Raises:
        DataError: A folder is missing, or a line is no polygon.

    Example:
        >>> samples = read_polygons("realdata/validation/coco128", count=40, per_image=4)
    """
    cv2 = needed("cv2")
    rng = np.random.default_rng(seed)
    root = Path(folder)
    samples: list[ImageSample] = []
    images = list_files(root / "images")
    for index in rng.permutation(len(images)) if count is not None else range(len(images)):
        if count is not None and len(samples) == count:
            break
        path = images[index]
        label = root / "labels" / f"{path.stem}.txt"
        if not label.is_file():
            continue
        image = read_rgb(path)
        scale = np.array([image.shape[1], image.shape[0]])
        masks = []
        for number, line in enumerate(_lines(label), 1):
            try:
                corners = np.array(line.split()[1:], np.float64).reshape(-1, 2)
            except ValueError as error:
                raise DataError(f"{label}, line {number} is not a class and pairs of coordinates") from error
            # Shares of the picture's sides; those of corners beyond its edge are a little less or more.
            if len(corners) < 3 or not bool((np.abs(corners) < 2).all()):
                raise DataError(f"{label}, line {number} is no polygon: it needs 3 corners, in shares of 0 to 1")
            mask = np.zeros(image.shape[:2], np.uint8)
            cv2.fillPoly(mask, [np.round(corners * scale).astype(np.int32)], 1)
            if mask.sum() >= 16:
                masks.append(mask.astype(bool))
        if per_image is not None:
            masks = [masks[i] for i in sorted(rng.permutation(len(masks))[:per_image])]
        if masks:
            samples.append(ImageSample(image, np.stack(masks), path.stem))
    if not samples:
        raise DataError(f"{root} has no photograph with an object")
    return samples


def _lines(label: Path) -> list[str]:
    try:
        return label.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{label} cannot be read as text ({error})") from error
