"""Masks as COCO's annotations in a JSON file, written frame by frame so that a long video takes no memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, TextIO, TypedDict

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..files import atomic_write
from .outlines import mask_polygons
from .rle import Rle, encode_rle

#: How a mask is stored: COCO's run lengths, or polygons along the edges of its pixels.
MaskForm = Literal["rle", "polygons"]


class MaskShape(TypedDict):
    """What COCO says of one mask.

    Attributes:
        segmentation: Run lengths, or polygons.
        area: Pixels.
        bbox: Left, top, width, height in pixels.
    """

    segmentation: Rle | list[list[int]]
    area: int
    bbox: list[int]


def mask_shape(mask: NDArray[np.bool_], form: MaskForm) -> MaskShape:
    """Describe a mask that is not empty as COCO does.

    Args:
        mask: bool ``[height, width]``.
        form: "rle" or "polygons".

    Raises:
        DataError: The mask is empty or not boolean.

    Example:
        >>> mask_shape(np.ones((1, 2), bool), "polygons")
        {'segmentation': [[0, 0, 2, 0, 2, 1, 0, 1]], 'area': 2, 'bbox': [0, 0, 2, 1]}
    """
    found: Rle | list[list[int]] = encode_rle(mask) if form == "rle" else mask_polygons(mask)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if len(rows) == 0:
        raise DataError("an empty mask is no annotation; leave it out")
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return {
        "segmentation": found,
        "area": int(np.count_nonzero(mask)),
        "bbox": [left, top, right - left, bottom - top],
    }


class CocoFile:
    """A COCO file of masks, written picture by picture: a context manager that leaves a whole file or none.

    ``images`` has every picture. ``annotations`` has an entry for each object that is seen in it, with the usual
    fields, ``object_id``, which is the same in all frames of a video, and ``score`` where it is known.

    Args:
        path: The JSON file.
        form: "rle" or "polygons".

    Raises:
        DataError: The form's name is unknown.
        QSAM2Error: The file cannot be written.

    Example:
        >>> with CocoFile("masks.json", "rle") as coco:  # doctest: +SKIP
        ...     coco.add("00000.jpg", ids)
    """

    def __init__(self, path: str | os.PathLike[str], form: MaskForm) -> None:
        if form not in ("rle", "polygons"):
            raise DataError(f"masks are stored as rle or polygons, not {form!r}")
        self.path, self.form = Path(path), form
        self._images: list[dict[str, int | str]] = []
        self._count = 0
        self._stack = ExitStack()
        self._file: TextIO | None = None

    def __enter__(self) -> CocoFile:
        temporary = self._stack.enter_context(atomic_write(self.path))
        self._file = self._stack.enter_context(open(temporary, "w", encoding="utf-8"))
        self._file.write('{"categories": [{"id": 1, "name": "object"}],\n"annotations": [')
        return self

    def add(
        self,
        file_name: str,
        masks: Mapping[int, NDArray[np.bool_]] | NDArray[np.integer],
        scores: Mapping[int, float] | None = None,
    ) -> None:
        """Add a picture and its masks.

        Args:
            file_name: The picture's name.
            masks: A bool ``[height, width]`` mask for each object id, at least one, or one integer
                ``[height, width]`` map of ids with 0 for the background. Empty masks are left out.
            scores: Object id -> the model's estimate of its quality.

        Raises:
            DataError: There is no mask to tell the picture's size, or the file is not open.
        """
        if self._file is None:
            raise DataError(f"{self.path} is not open: use it in a with statement")
        if not isinstance(masks, Mapping):
            shape, masks = masks.shape, {int(i): masks == i for i in np.unique(masks) if i != 0}
        elif masks:
            shape = next(iter(masks.values())).shape
        else:
            raise DataError(f"{file_name}: there is no mask; give an empty one for an object that is not seen")
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "file_name": file_name, "width": shape[1], "height": shape[0]})
        for object_id, mask in masks.items():
            if not mask.any():
                continue
            self._count += 1
            entry = {"id": self._count, "image_id": image_id, "category_id": 1, "object_id": object_id, "iscrowd": 0}
            if scores is not None and object_id in scores:
                entry["score"] = scores[object_id]  # type: ignore[assignment]
            self._file.write(",\n" if self._count > 1 else "\n")
            json.dump({**entry, **mask_shape(mask, self.form)}, self._file, allow_nan=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is None and self._file is not None:
            self._file.write('\n],\n"images": ')
            json.dump(self._images, self._file)
            self._file.write("}\n")
        self._file = None
        return self._stack.__exit__(kind, error, trace)
