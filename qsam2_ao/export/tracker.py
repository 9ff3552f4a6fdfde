"""Following objects through a video with exported networks, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.prompts import PromptArrays
from ..errors import DataError
from ..predictors import preprocess
from .settings import ExportSettings

_ABSENT = -1024.0
"""The logit of an object that is out of sight (``NO_OBJ_SCORE`` of the sam2 package)."""
Network = Callable[..., tuple[Tensor, ...]]
Clicks = tuple[Tensor, Tensor]


class Networks(NamedTuple):
    """The four exported files, opened."""

    image_encoder: Network
    mask_decoder: Network
    memory_attention: Network
    memory_encoder: Network


@dataclass
class _Remembered:
    """What is kept of an object: memory and pointer of prompted frames, and of those that later ones look back to."""

    prompted: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    frames: dict[int, Tensor] = field(default_factory=dict)
    pointers: dict[int, Tensor] = field(default_factory=dict)


class ExportedTracker:
    """Objects in one video, as ``SAM2VideoPredictor`` follows them.

    Args:
        networks: The files.
        settings: What the files don't hold of the model.
        num_frames: Of the video, where it is known.
        backward: Go back in time: each frame given is the one before the last.
    """

    def __init__(
        self, networks: Networks, settings: ExportSettings, num_frames: int | None, backward: bool = False
    ) -> None:
        self._networks, self._settings, self._backward = networks, settings, backward
        most = settings.max_obj_ptrs_in_encoder
        self._most_pointers = most if num_frames is None else min(num_frames, most)
        self._objects: dict[int, _Remembered] = {}
        self._masks: dict[int, Tensor] = {}
        self._frame: NDArray[np.uint8] | None = None
        self._image: tuple[Tensor, ...] | None = None
        self._index = 0

    def show(self, index: int, frame: NDArray[np.uint8]) -> None:
        """Make a frame the current one."""
        self._index, self._frame, self._image = index, frame, None
        self._masks.clear()

    def track(self) -> None:
        """Find every object on the current frame."""
        for object_id, memory in self._objects.items():
            image = self._encoded()
            mask, kept, pointer = self._segment(image, self._conditioned(image[0], memory), None)
            memory.frames[self._index], memory.pointers[self._index] = kept, pointer
            self._forget(memory)
            self._masks[object_id] = mask

    def prompt(self, object_id: int, given: PromptArrays | NDArray[np.bool_], *, add: bool) -> None:
        """Start an object on the current frame, from clicks and a box, or from its mask.

        Raises:
            DataError: It is a mask, or the object was tracked on this frame already: both need a decoder that reads
                masks, which exported files don't have.
        """
        memory = self._objects.get(object_id)
        if not isinstance(given, PromptArrays):
            raise DataError(f"object {object_id} has a mask, and exported files track from clicks and boxes only")
        if memory is not None and (add or self._index in memory.frames):
            raise DataError(
                f"object {object_id} is tracked on frame {self._index} already, and exported files cannot correct a "
                "mask: their decoder reads clicks and boxes only; use the packed file, or another object id"
            )
        image = self._encoded()
        clicks = scaled_clicks(given, self._size(), self._settings.image_size)
        self._masks[object_id], kept, pointer = self._segment(image, image[1], clicks)
        self._objects.setdefault(object_id, _Remembered()).prompted[self._index] = kept, pointer

    def remove(self, object_id: int) -> None:
        """Forget an object."""
        self._objects.pop(object_id)
        self._masks.pop(object_id, None)

    def masks(self) -> dict[int, NDArray[np.float32]]:
        """Object id -> logits on the current frame, float32 ``[height, width]``."""
        height, width = self._size()[::-1]
        return {i: resized(mask, (height, width))[0, 0].numpy() for i, mask in self._masks.items()}

    @property
    def object_ids(self) -> list[int]:
        """Those that are tracked."""
        return list(self._objects)

    def _size(self) -> tuple[int, int]:
        assert self._frame is not None
        return self._frame.shape[1], self._frame.shape[0]

    def _encoded(self) -> tuple[Tensor, ...]:
        if self._image is None:
            assert self._frame is not None
            self._image = self._networks.image_encoder(preprocess([self._frame], self._settings.image_size))
        return self._image

    def _segment(
        self, image: tuple[Tensor, ...], features: Tensor, clicks: Clicks | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask logits ``[1, 1, S/4, S/4]`` of a frame, its memory ``[1, C', S/16, S/16]``, and a pointer ``[1, C]``."""
        s, first = self._settings, clicks is not None
        coords, labels = clicks or (torch.zeros(1, 1, 2), torch.full((1, 1), -1, dtype=torch.int32))
        masks, scores, mask, _, pointers, object_score = self._networks.mask_decoder(
            features, image[2], image[3], coords, labels
        )
        count = 0 if clicks is None else labels.shape[1]
        several = s.multimask_output_in_sam and (first or s.multimask_output_for_tracking)
        if several and s.multimask_min_pt_num <= count <= s.multimask_max_pt_num:
            best = int(scores.argmax())
            mask, pointer = masks[:, best : best + 1], pointers[:, 1 + best]
        else:
            pointer = pointers[:, 0]
        if s.pred_obj_scores and float(object_score) <= 0:
            mask = torch.full_like(mask, _ABSENT)
        large = resized(mask, (s.image_size, s.image_size))
        if first and s.binarize_mask_from_pts_for_mem_enc:
            large = torch.where(large > 0, 100.0, -100.0)
        (memory,) = self._networks.memory_encoder(image[0], large, object_score)
        return mask, memory.to(torch.bfloat16), pointer

    def _conditioned(self, features: Tensor, kept: _Remembered) -> Tensor:
        """Features of the current frame, conditioned on the frames before it."""
        s = self._settings
        frames, ages, pointers, distances = [], [], [], []
        for index, (memory, pointer) in kept.prompted.items():
            frames.append(memory)
            ages.append(0)
            pointers.append(pointer)
            distances.append(abs(self._index - index))
        for ago in range(s.num_maskmem - 1, 0, -1):
            at = memory_frame(self._index, ago, s.memory_temporal_stride_for_eval, self._backward)
            if at in kept.frames:
                frames.append(kept.frames[at])
                ages.append(ago)
        for ago in range(1, self._most_pointers):
            at = self._index + (ago if self._backward else -ago)
            if at in kept.pointers:
                pointers.append(kept.pointers[at])
                distances.append(ago)
        distance = torch.tensor(distances, dtype=torch.float32) / max(self._most_pointers - 1, 1)
        memories = torch.cat(frames).float()
        return self._networks.memory_attention(features, memories, torch.tensor(ages), torch.cat(pointers), distance)[0]

    def _forget(self, kept: _Remembered) -> None:
        """What no later frame looks back to: memory does not grow with the video."""
        s = self._settings
        reach = s.memory_temporal_stride_for_eval * s.num_maskmem
        for held, most in ((kept.frames, reach), (kept.pointers, s.max_obj_ptrs_in_encoder)):
            for index in [i for i in held if abs(self._index - i) >= most]:
                del held[index]


def memory_frame(index: int, ago: int, stride: int, backward: bool = False) -> int:
    """The frame that SAM2 takes for the one ``ago`` memories before ``index``: the last, then every ``stride``-th.

    Example:
        >>> [memory_frame(10, ago, 3) for ago in (1, 2, 3)]
        [9, 6, 3]
    """
    if backward:
        return index + 1 if ago == 1 else -(-(index + 2) // stride) * stride + (ago - 2) * stride
    return index - 1 if ago == 1 else (index - 2) // stride * stride - (ago - 2) * stride


def scaled_clicks(given: PromptArrays, size: Sequence[int], side: int) -> Clicks:
    """Clicks of ``B`` objects in pixels of the network's input, computed as SAM2's predictors do.

    Args:
        given: Checked prompts.
        size: Width and height of the picture.
        side: Of the network's square input.

    Returns:
        float32 ``[B, M, 2]`` and int32 ``[B, M]``.
    """
    coords, labels = given.clicks()
    return torch.from_numpy(coords) / torch.tensor(tuple(size[:2])) * side, torch.from_numpy(labels)


def resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits ``[B, M, h, w]`` at another size, as SAM2 resizes them."""
    return F.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=False)
