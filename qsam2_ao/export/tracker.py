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
    """The exported files, opened; the last is missing in older exports, whose decoder reads no masks."""

    image_encoder: Network
    mask_decoder: Network
    memory_attention: Network
    memory_encoder: Network
    mask_downsampling: Network | None = None


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
        self._clicks: dict[int, Clicks] = {}
        self._tracked: set[int] = set()
        self._frame: NDArray[np.uint8] | None = None
        self._image: tuple[Tensor, ...] | None = None
        self._index = 0

    def show(self, index: int, frame: NDArray[np.uint8]) -> None:
        """Make a frame the current one."""
        self._index, self._frame, self._image = index, frame, None
        self._masks.clear()
        self._clicks.clear()
        self._tracked.clear()

    def track(self) -> None:
        """Find every object on the current frame."""
        for object_id, memory in self._objects.items():
            image = self._encoded()
            found = self._segment(image, self._conditioned(image, memory), None)
            self._masks[object_id], memory.frames[self._index], memory.pointers[self._index] = found
            self._forget(memory)
            self._tracked.add(object_id)

    def prompt(self, object_id: int, given: PromptArrays | NDArray[np.bool_], *, add: bool) -> None:
        """Start an object on the current frame, or correct what was tracked there, from clicks and a box or a mask.

        Raises:
            DataError: It is a mask, or a correction, which starts from one, and the files' decoder reads none; or the
                mask is empty.
        """
        memory = self._objects.get(object_id, _Remembered())
        tracked, image = object_id in self._tracked, self._encoded()
        features = self._conditioned(image, memory) if tracked else image[1]
        if not isinstance(given, PromptArrays):
            self._settings.check_mask_prompts(f"object {object_id} has a mask")
            large = network_mask(object_id, given, self._settings.image_size)
            self._clicks.pop(object_id, None)
            found = self._from_mask(image, features, large, first=not tracked)
        else:
            if tracked or (add and object_id in self._objects):
                self._settings.check_mask_prompts(
                    f"object {object_id} is tracked on frame {self._index} already and would be corrected"
                )
            clicks = scaled_clicks(given, self._size(), self._settings.image_size)
            if add and object_id in self._clicks:
                before = self._clicks[object_id]
                clicks = torch.cat([before[0], clicks[0]], 1), torch.cat([before[1], clicks[1]], 1)
            self._clicks[object_id] = clicks
            mask = self._masks.get(object_id) if self._settings.mask_prompts else None
            mask = None if mask is None else mask.clamp(-32, 32)
            found = self._segment(image, features, clicks, mask, first=not tracked)
        self._masks[object_id], kept, pointer = found
        if tracked and not self._settings.add_all_frames_to_correct_as_cond:
            memory.frames[self._index], memory.pointers[self._index] = kept, pointer
        else:
            memory.prompted[self._index] = kept, pointer
            memory.frames.pop(self._index, None)
            memory.pointers.pop(self._index, None)
        self._objects[object_id] = memory

    def remove(self, object_id: int) -> None:
        """Forget an object."""
        self._objects.pop(object_id)
        self._masks.pop(object_id, None)
        self._clicks.pop(object_id, None)
        self._tracked.discard(object_id)

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
        self,
        image: tuple[Tensor, ...],
        features: Tensor,
        clicks: Clicks | None,
        mask: Tensor | None = None,
        *,
        first: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask logits ``[1, 1, S/4, S/4]`` of a frame, its memory ``[1, C', S/16, S/16]``, and a pointer ``[1, C]``.

        Args:
            image: What the image encoder gave.
            features: What the decoder looks at.
            clicks: The user's.
            mask: Logits that the decoder starts from, ``[1, 1, S/4, S/4]``.
            first: Whether the object was not tracked on this frame.
        """
        s, prompted = self._settings, clicks is not None or mask is not None
        masks, scores, found, _, pointers, object_score = decoded(self._networks, s, features, image, clicks, mask)
        count = 0 if clicks is None else clicks[1].shape[1]
        several = s.multimask_output_in_sam and (first or s.multimask_output_for_tracking)
        if several and s.multimask_min_pt_num <= count <= s.multimask_max_pt_num:
            best = int(scores.argmax())
            found, pointer = masks[:, best : best + 1], pointers[:, 1 + best]
        else:
            pointer = pointers[:, 0]
        if s.pred_obj_scores and float(object_score) <= 0:
            found = torch.full_like(found, _ABSENT)
        return found, self._memory(image, found, object_score, prompted), pointer

    def _from_mask(
        self, image: tuple[Tensor, ...], features: Tensor, large: Tensor, *, first: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same from a mask of 0 and 1, ``[1, 1, S, S]``."""
        s = self._settings
        if not s.use_mask_input_as_output_without_sam:
            return self._segment(image, features, None, smoothed(large, s.image_size // 4), first=first)
        assert self._networks.mask_downsampling is not None
        (mask,) = self._networks.mask_downsampling(large)
        pointers = decoded(self._networks, s, image[0], image, None, mask)[4]
        found = smoothed(large * 20 - 10, s.image_size // 4)
        return found, self._memory(image, found, torch.full((1, 1), 10.0), True), pointers[:, 0]

    def _memory(self, image: tuple[Tensor, ...], mask: Tensor, object_score: Tensor, prompted: bool) -> Tensor:
        s = self._settings
        large = resized(mask, (s.image_size, s.image_size))
        if prompted and s.binarize_mask_from_pts_for_mem_enc:
            large = torch.where(large > 0, 100.0, -100.0)
        (memory,) = self._networks.memory_encoder(image[0], large, object_score)
        return memory.to(torch.bfloat16)

    def _conditioned(self, image: tuple[Tensor, ...], kept: _Remembered) -> Tensor:
        """Features of the current frame, conditioned on the frames before it, if there are any."""
        s = self._settings
        features, bare = image[:2]
        frames, ages, pointers, distances = [], [], [], []
        for index, (memory, pointer) in kept.prompted.items():
            if index == self._index:  # it is being corrected
                continue
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
        if not frames:
            return bare
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


def decoded(
    networks: Networks,
    settings: ExportSettings,
    features: Tensor,
    image: tuple[Tensor, ...],
    clicks: Clicks | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """What the mask decoder says of one object.

    Args:
        networks: The files.
        settings: Of the export.
        features: ``[1, C, S/16, S/16]``.
        image: What the image encoder gave.
        clicks: ``[1, M, 2]`` and ``[1, M]``; None, or without any, is a padding click, as SAM2 has it.
        mask: Logits, float32 ``[1, 1, S/4, S/4]``.

    Returns:
        See :class:`~.parts.MaskDecoder`.
    """
    coords, labels = clicks or (torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.int32))
    if not labels.shape[1]:
        coords, labels = torch.zeros(1, 1, 2), torch.full((1, 1), -1, dtype=torch.int32)
    inputs = (features, image[2], image[3], coords, labels)
    if not settings.mask_prompts:
        return networks.mask_decoder(*inputs)
    side = settings.image_size // 4
    given = torch.zeros(1, 1, side, side) if mask is None else mask
    return networks.mask_decoder(*inputs, given, torch.tensor([float(mask is not None)]))


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


def network_mask(object_id: int, mask: NDArray[np.bool_], side: int) -> Tensor:
    """An object's mask as the network reads it.

    Args:
        object_id: Whose it is, for the error.
        mask: ``[height, width]``.
        side: Of the network's input.

    Returns:
        0 and 1, float32 ``[1, 1, side, side]``.

    Raises:
        DataError: Nothing of it is left at that size.
    """
    large = torch.from_numpy(mask)[None, None].float()
    if mask.shape != (side, side):
        large = (smoothed(large, side) >= 0.5).float()
    if not large.any():
        raise DataError(
            f"object {object_id}: its mask is empty, or too small for the network's input of {side} pixels; give a "
            "larger one, or a click"
        )
    return large


def smoothed(mask: Tensor, side: int) -> Tensor:
    """A mask ``[B, 1, h, w]`` at another size, ``[B, 1, side, side]``, as SAM2 makes masks smaller."""
    return F.interpolate(mask, (side, side), mode="bilinear", align_corners=False, antialias=True)


def resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits ``[B, M, h, w]`` at another size, as SAM2 resizes them."""
    return F.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=False)
