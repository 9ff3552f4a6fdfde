"""A tiny folder of photographs with masks, cut-outs and validation sets in the layout that the readers expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_library(root: Path, *, seed: int = 0) -> Path:
    """Two sets of two photographs, two cut-outs and two backgrounds."""
    rng = np.random.default_rng(seed)
    for name in ("people", "nuclei"):
        (root / name / "images").mkdir(parents=True)
        (root / name / "masks").mkdir()
        for index in range(2):
            ids = np.zeros((60, 80), np.uint16)
            ids[10:30, 10:40] = 1
            ids[30:55, 15:35] = 2
            ids[20:40, 55:75] = 300 if name == "nuclei" else 7
            image = rng.integers(0, 255, (60, 80, 3)).astype(np.uint8) // 4 + (ids % 7)[..., None].astype(np.uint8) * 20
            suffix = "jpg" if name == "people" else "png"
            Image.fromarray(image.astype(np.uint8)).save(root / name / "images" / f"{index}.{suffix}")
            mask = Image.fromarray(ids) if name == "nuclei" else Image.fromarray(ids.astype(np.uint8)).convert("P")
            mask.save(root / name / "masks" / f"{index}.png")
    for folder, count in (("cutouts", 2), ("backgrounds", 2)):
        (root / folder).mkdir()
        for index in range(count):
            y, x = np.mgrid[-1:1:50j, -1:1:40j]
            alpha = np.where(np.hypot(x, y) < 0.8, 255, 0).astype(np.uint8)
            colour = rng.integers(0, 255, (50, 40, 3)).astype(np.uint8)
            if folder == "cutouts":
                Image.fromarray(np.dstack([colour, alpha])).save(root / folder / f"{index}.webp", lossless=True)
            else:
                Image.fromarray(colour).save(root / folder / f"{index}.jpg")
    return root


def write_validation(root: Path, *, seed: int = 0) -> Path:
    """Photographs with polygons in ``coco128``, a clip in ``pumavos``."""
    rng = np.random.default_rng(seed)
    for folder in ("images", "labels"):
        (root / "coco128" / folder).mkdir(parents=True)
    for index in range(3):
        image = Image.fromarray(rng.integers(0, 255, (40, 64, 3)).astype(np.uint8))
        image.save(root / "coco128" / "images" / f"{index}.jpg")
    for index in range(2):  # the third photograph has no label file
        lines = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n3 0.1 0.1 0.4 0.1 0.4 0.6\n7 0.5 0.5 0.501 0.5 0.5 0.501\n"
        (root / "coco128" / "labels" / f"{index}.txt").write_text(lines)
    write_clip(root / "pumavos")
    return root


def write_clip(root: Path) -> None:
    """A square that moves to the right over four frames, in DAVIS's layout."""
    clip = {kind: root / kind / "chair" for kind in ("JPEGImages", "Annotations")}
    for kind, folder in clip.items():
        folder.mkdir(parents=True)
        for t in range(4):
            mask = np.zeros((40, 64), np.uint8)
            mask[10:30, 10 + 4 * t : 34 + 4 * t] = 1
            if kind == "JPEGImages":
                Image.fromarray(np.dstack([90 + 100 * mask] * 3)).save(folder / f"{t:05d}.jpg")
            else:
                Image.fromarray(mask).convert("P").save(folder / f"{t:05d}.png")
