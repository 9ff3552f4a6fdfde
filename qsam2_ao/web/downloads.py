"""Masks to take along: PNGs of object ids, COCO's run lengths, and the picture or video with the masks over it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..data.masks import read_ids
from ..data.video import frame_rate, write_video
from ..errors import DataError
from ..files import atomic_write
from ..reporting.overlay import draw_masks, save_picture
from ..segmentation.saving import coco_files
from .clips import Clip

Form = Literal["masks", "rle", "overlay"]
FORMS: tuple[Form, ...] = ("masks", "rle", "overlay")


def make_download(clip: Clip, model: int, form: Form) -> Path:
    """Write what a user wants to take along.

    Args:
        clip: The picture or clip, after masks of it were found.
        model: Number of the model.
        form: "masks" (a ZIP file of PNGs), "rle" (a JSON file) or "overlay" (a PNG, or an MP4).

    Returns:
        The file.

    Raises:
        DataError: There are no masks.
        MissingPackageError: A video is wanted, and PyAV is not installed.
    """
    masks = sorted(clip.mask_path(model, 0).parent.glob("*.png"))
    if not masks:
        raise DataError("there are no masks yet: click on the picture, or track the clip")
    folder = clip.folder / f"download-{model}"
    folder.mkdir(exist_ok=True)
    if form == "masks":
        path = folder / "masks.zip"
        with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for mask in masks:
                archive.write(mask, mask.name)
        return path
    if form == "rle":
        with coco_files(["rle"], folder) as files:
            for mask in masks:
                files.add(f"{mask.stem}.jpg", read_ids(mask))
        return folder / "rle.json"
    if clip.picture:
        return save_picture(draw_masks(clip.frame(0), read_ids(masks[0])), folder / "overlay.png")

    def drawn() -> Iterator[NDArray[np.uint8]]:
        for mask in masks:
            yield np.asarray(draw_masks(clip.frame(int(mask.stem)), read_ids(mask)))

    write_video(folder / "overlay.mp4", drawn(), frame_rate(clip.source) if clip.source else 12)
    return folder / "overlay.mp4"
