"""Segmenting images and tracking videos with exported files: the networks and what lies between them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.pictures import IMAGE_MEAN, IMAGE_STD
from ..data.prompts import OBJECT_NAMES, check_object_prompt, check_prompts
from ..errors import DataError, QSAM2Error
from ..native import load_kernels
from ..predictors import CANNOT_TRACK
from ..spelling import unknown_name
from .runtimes import open_network
from .settings import ExportSettings
from .tracker import Clicks, ExportedTracker, Networks, decoded, resized, scaled_clicks


class ExportedSAM2:
    """An image predictor and a video tracker on the files that ``qsam2 export`` wrote, in any of its formats.

    Args:
        folder: Where they are.

    Raises:
        CheckpointError: A file is missing or damaged.
        UnsupportedLayerError: The files call the int8 kernels, and this machine cannot run them.
        QSAM2Error: The runtime's package is not installed.

    Example:
        >>> sam = ExportedSAM2("tiny-w4a8-aoti")  # doctest: +SKIP
        >>> sam.set_image(np.asarray(Image.open("truck.jpg")))  # doctest: +SKIP
        >>> masks, scores, _ = sam.predict(np.array([[500, 375]]), np.array([1]))  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.settings = ExportSettings.load(Path(folder))
        if self.settings.kernels:
            load_kernels()
        names = Networks._fields if self.settings.mask_prompts else Networks._fields[:-1]
        runtime, size = self.settings.runtime, self.settings.image_size
        self.networks = Networks(*(open_network(Path(folder), name, runtime, size) for name in names))
        self._image: tuple[Tensor, ...] | None = None
        self._image_size = (0, 0)

    def set_image(self, image: Image.Image | NDArray[np.uint8]) -> None:
        """Compute the features of an image.

        Args:
            image: PIL image, or uint8 ``[height, width, 3]``, RGB.

        Raises:
            DataError: It is something else.
        """
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise DataError(f"an image is uint8 [height, width, 3], not {pixels.dtype} {list(pixels.shape)}")
        size = self.settings.image_size
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
        self._image, self._image_size = self.networks.image_encoder(_normalize(x)), pixels.shape[:2]

    def predict(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        box: NDArray[Any] | None = None,
        mask_input: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Segment objects in the image, as ``SAM2ImagePredictor.predict``.

        Args:
            point_coords: Clicks in pixels of the image, ``[N, 2]``, or ``[B, N, 2]`` for B objects.
            point_labels: 1 (inside), 0 (outside) or -1 (padding), ``[N]`` or ``[B, N]``.
            box: ``[4]``, x0, y0, x1, y1, or ``[B, 4]``.
            mask_input: Logits of an earlier prediction, ``[1, S/4, S/4]`` or ``[B, 1, S/4, S/4]``, with clicks or a
                box. SAM2's predictor reads a mask alone without any click, which the exported decoder has no input
                for, and mostly finds nothing: give the box around it, or, for the same answer, one padding click,
                ``[[0, 0]]`` with label -1, to both.
            multimask_output: Three masks, for a click that may mean several things, or one.
            return_logits: Logits instead of booleans.

        Returns:
            Masks ``[M, height, width]``, the model's estimates of their IoU ``[M]``, and logits at a quarter of the
            network's input ``[M, S/4, S/4]``; of several objects with ``[B, ...]`` in front.

        Raises:
            DataError: No image was set, the prompts break the rules of
                :func:`~qsam2_ao.data.prompts.check_prompts`, or there is a mask alone, or one for files of an older
                version, whose decoder reads none.
        """
        if self._image is None:
            raise DataError("call set_image before predict")
        if mask_input is not None:
            self.settings.check_mask_prompts("mask_input is given")
            if point_coords is None and box is None:
                raise DataError(
                    "mask_input is alone, and the exported decoder has no input without clicks: give clicks or the "
                    "box around it, or the padding click point_coords=[[0, 0]], point_labels=[-1]"
                )
        coords, labels = self._clicks(self._image_size, point_coords, point_labels, box, mask_input)
        side, logits = self.settings.image_size // 4, None
        if mask_input is not None:
            logits = torch.from_numpy(np.asarray(mask_input, np.float32)).reshape(-1, 1, side, side)
            logits = logits.expand(len(coords), -1, -1, -1)
        found: list[tuple[Tensor, ...]] = []
        for one in range(len(coords)):  # the exported decoder has one object's prompts for inputs
            clicks, before = (coords[one : one + 1], labels[one : one + 1]), None
            if logits is not None:
                before = logits[one : one + 1]
            masks, scores, mask, score, _, _ = decoded(
                self.networks, self.settings, self._image[1], self._image, clicks, before
            )
            low, quality = (masks, scores) if multimask_output else (mask, score)
            found.append((resized(low, self._image_size), quality, low.clamp(-32, 32)))
        large, ious, small = (torch.cat(parts).squeeze(0).numpy() for parts in zip(*found, strict=True))
        return large if return_logits else large > 0, ious, small

    def track(
        self, frames: Sequence[NDArray[np.uint8]], prompts: Mapping[int, Mapping[str, NDArray[Any] | None]]
    ) -> Iterator[tuple[int, dict[int, NDArray[np.float32]]]]:
        """Follow objects from prompts on the first frame, as ``SAM2VideoPredictor`` does.

        Args:
            frames: uint8 ``[height, width, 3]`` each, RGB, all of one size.
            prompts: Object id -> {"points": ``[N, 2]``, "labels": ``[N]``, "box": ``[4]``}, in pixels, or {"mask":
                bool ``[height, width]``}; each may be None.

        Yields:
            Index of the frame; object id -> mask logits, float32 ``[height, width]``.

        Raises:
            DataError: There are no frames or prompts, frames of several sizes, or a prompt that breaks the rules of
                :func:`~qsam2_ao.data.prompts.check_object_prompt`.
            QSAM2Error: As :meth:`tracker`.
        """
        if not prompts:
            raise DataError("tracking needs a click, a box or a mask for at least one object")
        if not len(frames):
            raise DataError("a video needs at least one frame")
        for object_id, prompt in prompts.items():
            if unknown := sorted(set(prompt) - set(OBJECT_NAMES)):
                raise DataError(f"object {object_id}: {unknown_name('prompt', unknown[0], OBJECT_NAMES)}")
        tracker, shape = self.tracker(len(frames)), np.shape(frames[0])
        for index, frame in enumerate(frames):
            if np.shape(frame) != shape:
                raise DataError(f"frame {index} is {list(np.shape(frame))}, and the first was {list(shape)}")
            tracker.show(index, frame)
            tracker.track()
            if index == 0:
                for object_id, prompt in prompts.items():
                    checked = check_object_prompt(shape[1::-1], **prompt, where=f"object {object_id}: ")
                    tracker.prompt(object_id, checked, add=False)
            yield index, tracker.masks()

    def tracker(self, num_frames: int | None = None, *, backward: bool = False) -> ExportedTracker:
        """A tracker for one video, of which nothing is known yet.

        Args:
            num_frames: How many it has, where that is known.
            backward: Go back in time.

        Raises:
            QSAM2Error: The model that was exported has no trained memory.
        """
        if self.settings.images_only:
            raise QSAM2Error(CANNOT_TRACK)
        return ExportedTracker(self.networks, self.settings, num_frames, backward)

    def _clicks(
        self,
        size: Sequence[int],
        points: NDArray[Any] | None,
        labels: NDArray[Any] | None,
        box: NDArray[Any] | None,
        mask: NDArray[Any] | None = None,
    ) -> Clicks:
        """Checked clicks ``[B, M, 2]`` in pixels of the network's input, of a picture of height and width ``size``."""
        side = self.settings.image_size
        given = check_prompts(size[::-1], points, labels, box, mask, mask_size=side // 4)
        return scaled_clicks(given, size[::-1], side)


def _normalize(x: Tensor) -> Tensor:
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    return (x - mean[:, None, None]) / std[:, None, None]
