"""Objects in an image: from clicks and boxes to masks, and to a mask PNG with a picture of it."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from ..data.pictures import read_rgb
from ..errors import DataError
from ..export import ExportedSAM2
from ..export.tracker import smoothed
from ..predictors import eval_mode, image_predictor
from ..reporting.label_maps import label_map, save_label_map
from ..reporting.overlay import draw_masks, draw_prompts, save_picture
from ..threads import one_thread_if_small
from .saving import MASKS_AND_OVERLAY, SavedAs, check_outputs, coco_files
from .schedule import ObjectPrompt, check_object_id

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(frozen=True)
class ObjectFound:
    """What was found of an object in an image.

    Attributes:
        id: The object's id.
        score: The model's own estimate of the IoU.
        pixels: Those that the label map gives to it.
    """

    id: int
    score: float
    pixels: int


@dataclass(frozen=True)
class SegmentedImage:
    """The files of a segmented image.

    Attributes:
        mask: The palette PNG of object ids; None where it was not wanted, as the others.
        overlay: The picture with masks and prompts.
        objects: What was found, by id.
        rle: COCO's annotations with run lengths.
        polygons: COCO's annotations with polygons.
    """

    mask: Path | None
    overlay: Path | None
    objects: tuple[ObjectFound, ...]
    rle: Path | None = None
    polygons: Path | None = None


def segment_file(
    model: SAM2Base | ExportedSAM2,
    image: str | os.PathLike[str],
    prompts: Mapping[int, ObjectPrompt],
    output: str | os.PathLike[str],
    *,
    save: Collection[SavedAs] = MASKS_AND_OVERLAY,
) -> SegmentedImage:
    """Segment a picture and write ``IMAGE_mask.png`` (object ids, 0 is background) and ``IMAGE_overlay.png``.

    Args:
        model: A model of the SAM2Base family, or an ``ExportedSAM2``.
        image: The picture's file.
        prompts: Object id -> its clicks and box, in pixels of the picture.
        output: The folder to write to.
        save: What to write: "masks", "overlay", "rle" (``IMAGE_rle.json``, COCO's run lengths) or "polygons"
            (``IMAGE_polygons.json``).

    Returns:
        The files, and what was found.

    Raises:
        DataError: The picture is absent or damaged, as for :func:`segment_image`, or ``save`` has an unknown name.
        QSAM2Error: A file cannot be written.

    Example:
        >>> found = segment_file(model, "truck.jpg", {1: ObjectPrompt([(500, 375, 1)])}, "outputs")
    """
    image, output = Path(image), Path(output)
    check_outputs(save, output, image)
    picture = Image.fromarray(read_rgb(image))
    with one_thread_if_small(model):
        logits, scores = segment_image(model, picture, prompts)
    ids = label_map(logits)
    mask = save_label_map(ids, output / f"{image.stem}_mask.png") if "masks" in save else None
    overlay = None
    if "overlay" in save:
        drawn = draw_prompts(
            draw_masks(picture, ids),
            [click for prompt in prompts.values() for click in prompt.points],
            [prompt.box for prompt in prompts.values() if prompt.box is not None],
        )
        overlay = save_picture(drawn, output / f"{image.stem}_overlay.png")
    with coco_files(save, output, f"{image.stem}_") as files:
        files.add(image.name, ids, scores)
    objects = (ObjectFound(number, scores[number], int((ids == number).sum())) for number in prompts)
    return SegmentedImage(mask, overlay, tuple(objects), files.rle, files.polygons)


def segment_image(
    model: SAM2Base | ExportedSAM2, picture: Image.Image, prompts: Mapping[int, ObjectPrompt]
) -> tuple[dict[int, NDArray[np.float32]], dict[int, float]]:
    """Run an image predictor on every object's clicks and box.

    Args:
        model: A model of the SAM2Base family, or an ``ExportedSAM2``.
        picture: RGB.
        prompts: Object id -> its prompts. A mask is what an earlier prediction would be: the model refines it. With it
            goes the box around it, as SAM2 is trained to read masks beside clicks or boxes; alone it mostly finds
            nothing.

    Returns:
        Object id -> mask logits, float32 ``[height, width]``; object id -> the model's estimate of the IoU.

    Raises:
        DataError: There is no prompt, one breaks the rules of :func:`~qsam2_ao.data.prompts.check_prompts`, an object
            has a mask and another prompt, an empty mask or an id that is not 1 to 254, or a model that an older version
            exported is to read a mask.

    Example:
        >>> logits, scores = segment_image(model, picture, {1: ObjectPrompt(box=(10, 20, 60, 80))})
    """
    if not prompts:
        raise DataError("say what to look for: give a click, a box or a mask for at least one object")
    for object_id, prompt in prompts.items():
        check_object_id(object_id, "")
        prompt.check(picture.size, f"object {object_id}: ")
        if prompt.mask is not None:
            if not np.any(prompt.mask):
                raise DataError(f"object {object_id}: its mask is empty; give one that shows it, clicks or a box")
            if isinstance(model, ExportedSAM2):
                model.settings.check_mask_prompts(f"object {object_id} has a mask")
    # Its picture is its caller's; other threads may be at work with it, too.
    predictor = copy.copy(model) if isinstance(model, ExportedSAM2) else image_predictor(model)
    with eval_mode(model) if isinstance(model, nn.Module) else nullcontext():
        predictor.set_image(picture)
        logits, scores = {}, {}
        for object_id, prompt in prompts.items():
            arrays = prompt.arrays()
            mask = {}
            if prompt.mask is not None:
                mask = {"mask_input": _as_logits(prompt.mask, model)}
                box = Image.fromarray(np.asarray(prompt.mask) != 0).getbbox()
                arrays["box"] = np.array(box, np.float32)
            masks, ious, _ = predictor.predict(
                point_coords=arrays["points"],
                point_labels=arrays["labels"],
                box=arrays["box"],
                # One click may mean a part or the whole: let the model propose several and keep its favourite.
                multimask_output=len(prompt.points) == 1 and prompt.box is None and prompt.mask is None,
                return_logits=True,
                **mask,
            )
            best = int(np.argmax(ious))
            logits[object_id], scores[object_id] = masks[best], float(ious[best])
    return logits, scores


def _as_logits(mask: NDArray[np.bool_], model: SAM2Base | ExportedSAM2) -> NDArray[np.float32]:
    """A mask at the size that the decoder reads, ``[1, S/4, S/4]``: -10 and 10, as SAM2's video predictor has it."""
    logits = torch.from_numpy(np.asarray(mask) != 0)[None, None].float() * 20 - 10
    side = (model.settings if isinstance(model, ExportedSAM2) else model).image_size // 4
    return smoothed(logits, side)[0].numpy()
