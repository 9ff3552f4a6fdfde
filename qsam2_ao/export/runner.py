"""Segmenting images and tracking videos with exported files: the four networks and what lies between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data.pictures import IMAGE_MEAN, IMAGE_STD
from ..errors import DataError
from ..native import load_kernels
from ..predictors import preprocess
from .runtimes import open_network
from .settings import ExportSettings

_ABSENT = -1024.0
"""The logit of an object that is out of sight (``NO_OBJ_SCORE`` of the sam2 package)."""
Network = Callable[..., tuple[Tensor, ...]]
Clicks = tuple[Tensor, Tensor]


@dataclass
class _Remembered:
    """What is kept of an object in a video."""

    first: tuple[Tensor, Tensor]
    frames: dict[int, Tensor] = field(default_factory=dict)
    pointers: dict[int, Tensor] = field(default_factory=dict)


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
        names = ("image_encoder", "mask_decoder", "memory_attention", "memory_encoder")
        self._encode, self._decode, self._attend, self._memorize = (
            open_network(Path(folder), name, self.settings.runtime) for name in names
        )
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
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise DataError(f"an image is uint8 [height, width, 3], not {pixels.dtype} {list(pixels.shape)}")
        size = self.settings.image_size
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
        self._image, self._image_size = self._encode(_normalize(x)), pixels.shape[:2]

    def predict(
        self,
        point_coords: NDArray[Any] | None = None,
        point_labels: NDArray[Any] | None = None,
        box: NDArray[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Segment an object in the image, as ``SAM2ImagePredictor.predict``.

        Args:
            point_coords: Clicks in pixels of the image, ``[N, 2]``.
            point_labels: 1 (inside) or 0 (outside), ``[N]``.
            box: ``[4]``, x0, y0, x1, y1.
            multimask_output: Three masks, for a click that may mean several things, or one.
            return_logits: Logits instead of booleans.

        Returns:
            Masks ``[M, height, width]``, the model's estimates of their IoU ``[M]``, and logits at a quarter of the
            network's input ``[M, S/4, S/4]``.

        Raises:
            DataError: No image was set, or there is no prompt.
        """
        if self._image is None:
            raise DataError("call set_image before predict")
        clicks = self._clicks(self._image_size, point_coords, point_labels, box)
        _, first, middle, fine = self._image
        masks, scores, mask, score, _, _ = self._decode(first, middle, fine, *clicks)
        low, quality = (masks, scores) if multimask_output else (mask, score)
        large = _resized(low, self._image_size)[0].numpy()
        return large if return_logits else large > 0, quality[0].numpy(), low[0].clamp(-32, 32).numpy()

    def track(
        self, frames: Sequence[NDArray[np.uint8]], prompts: Mapping[int, Mapping[str, NDArray[Any] | None]]
    ) -> Iterator[tuple[int, dict[int, NDArray[np.float32]]]]:
        """Follow objects from prompts on the first frame, as ``SAM2VideoPredictor`` does.

        Args:
            frames: uint8 ``[height, width, 3]`` each, RGB, all of one size.
            prompts: Object id -> {"points": ``[N, 2]``, "labels": ``[N]``, "box": ``[4]``}, in pixels; each may be
                None.

        Yields:
            Index of the frame; object id -> mask logits, float32 ``[height, width]``.

        Raises:
            DataError: There are no frames or prompts, or frames of several sizes.
        """
        if not prompts:
            raise DataError("tracking needs a click or a box for at least one object")
        remembered: dict[int, _Remembered] = {}
        for index, frame in enumerate(frames):
            size = frame.shape[:2]
            image = self._encode(preprocess([frame], self.settings.image_size))
            logits = {}
            for object_id, prompt in prompts.items():
                if index == 0:
                    clicks = self._clicks(size, prompt.get("points"), prompt.get("labels"), prompt.get("box"))
                    mask, *kept = self._segment_frame(image, image[1], clicks, first=True)
                    remembered[object_id] = _Remembered((kept[0], kept[1]))
                else:
                    memory = remembered[object_id]
                    conditioned = self._remember(image[0], memory, index, len(frames))
                    mask, *kept = self._segment_frame(image, conditioned, None, first=False)
                    memory.frames[index], memory.pointers[index] = kept
                    self._forget(memory, index)
                logits[object_id] = _resized(mask, size)[0, 0].numpy()
            yield index, logits

    def _clicks(
        self, size: tuple[int, ...], points: NDArray[Any] | None, labels: NDArray[Any] | None, box: NDArray[Any] | None
    ) -> Clicks:
        """A box is two clicks, its corners, in front of the others."""
        if (points is None) != (labels is None):
            raise DataError("clicks need both coordinates and labels")
        coords = [np.reshape(a, (-1, 2)) for a in (box, points) if a is not None]
        kinds = [np.reshape(a, -1) for a in (None if box is None else [2, 3], labels) if a is not None]
        if not coords or len(np.concatenate(coords)) != len(np.concatenate(kinds)):
            raise DataError("a prompt is a box, or clicks with one label each")
        scale = self.settings.image_size / np.array([size[1], size[0]])
        xy = torch.from_numpy(np.concatenate(coords) * scale).float()
        if not bool(xy.isfinite().all()):
            raise DataError("clicks and boxes are in pixels, not NaN or infinite")
        return xy[None], torch.from_numpy(np.concatenate(kinds).astype(np.int32))[None]

    def _segment_frame(
        self, image: tuple[Tensor, ...], features: Tensor, clicks: Clicks | None, *, first: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask logits ``[1, 1, S/4, S/4]`` of a frame, its memory ``[1, C', S/16, S/16]``, and a pointer ``[1, C]``."""
        s = self.settings
        coords, labels = clicks or (torch.zeros(1, 1, 2), torch.full((1, 1), -1, dtype=torch.int32))
        masks, scores, mask, _, pointers, object_score = self._decode(features, image[2], image[3], coords, labels)
        count = 0 if clicks is None else labels.shape[1]
        several = s.multimask_output_in_sam and (first or s.multimask_output_for_tracking)
        if several and s.multimask_min_pt_num <= count <= s.multimask_max_pt_num:
            best = int(scores.argmax())
            mask, pointer = masks[:, best : best + 1], pointers[:, 1 + best]
        else:
            pointer = pointers[:, 0]
        if s.pred_obj_scores and float(object_score) <= 0:
            mask = torch.full_like(mask, _ABSENT)
        large = _resized(mask, (s.image_size, s.image_size))
        if first and s.binarize_mask_from_pts_for_mem_enc:
            large = torch.where(large > 0, 100.0, -100.0)
        (memory,) = self._memorize(image[0], large, object_score)
        return mask, memory.to(torch.bfloat16), pointer

    def _remember(self, features: Tensor, kept: _Remembered, index: int, length: int) -> Tensor:
        """Features of frame ``index`` of ``length``, conditioned on the frames before it."""
        s, stride = self.settings, self.settings.memory_temporal_stride_for_eval
        frames, ages = [kept.first[0]], [0]
        for ago in range(s.num_maskmem - 1, 0, -1):
            at = index - 1 if ago == 1 else (index - 2) // stride * stride - (ago - 2) * stride
            if at in kept.frames:
                frames.append(kept.frames[at])
                ages.append(ago)
        pointers, distances = [kept.first[1]], [index]
        most = min(length, s.max_obj_ptrs_in_encoder)
        for ago in range(1, most):
            if index - ago in kept.pointers:
                pointers.append(kept.pointers[index - ago])
                distances.append(ago)
        distance = torch.tensor(distances, dtype=torch.float32) / max(most - 1, 1)
        memory = torch.cat(frames).float()
        return self._attend(features, memory, torch.tensor(ages), torch.cat(pointers), distance)[0]

    def _forget(self, kept: _Remembered, index: int) -> None:
        """What no later frame looks back to: memory does not grow with the video."""
        reach = self.settings.memory_temporal_stride_for_eval * self.settings.num_maskmem
        kept.frames.pop(index - reach, None)
        kept.pointers.pop(index - self.settings.max_obj_ptrs_in_encoder, None)


def _normalize(x: Tensor) -> Tensor:
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    return (x - mean[:, None, None]) / std[:, None, None]


def _resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=False)
