"""Photographs with YOLO polygons as samples for the evaluation of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..data.formats.yolo import fill_polygon
from ..data.formats.yolo import read_polygons as polygons_of_file
from ..data.pictures import read_rgb
from ..data.real.pictures import list_files
from ..errors import DataError
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
        masks = [fill_polygon(corners, image.shape[:2]) for corners in polygons_of_file(label).values()]
        masks = [mask for mask in masks if np.count_nonzero(mask) >= 16]
        if per_image is not None:
            masks = [masks[i] for i in sorted(rng.permutation(len(masks))[:per_image])]
        if masks:
            samples.append(ImageSample(image, np.stack(masks), path.stem))
    if not samples:
        raise DataError(f"{root} has no photograph with an object")
    return samples
