"""From one frame to the next: SAM2's own video predictor with a bounded memory, or exported files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..compat.quiet import propagate_one
from ..data.prompts import PromptArrays
from ..export import ExportedSAM2
from ..export.tracker import memory_frame, network_mask
from ..predictors import as_video_predictor, preprocess, state_of_images

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


class Tracker(Protocol):
    """Objects in one video; ``ExportedTracker`` documents the methods."""

    @property
    def object_ids(self) -> list[int]: ...  # noqa: D102

    def show(self, index: int, frame: NDArray[np.uint8], /) -> None: ...  # noqa: D102

    def track(self) -> None: ...  # noqa: D102

    def prompt(self, object_id: int, given: PromptArrays | NDArray[np.bool_], /, *, add: bool) -> None: ...  # noqa: D102

    def remove(self, object_id: int, /) -> None: ...  # noqa: D102

    def masks(self) -> dict[int, NDArray[np.float32]]: ...  # noqa: D102


def make_tracker(model: SAM2Base | ExportedSAM2, num_frames: int | None, backward: bool) -> Tracker:
    """The tracker for a model.

    Args:
        model: A model of the SAM2Base family, or an ``ExportedSAM2``.
        num_frames: Of the video, where it is known.
        backward: Go back in time.
    """
    if isinstance(model, ExportedSAM2):
        return model.tracker(num_frames, backward=backward)
    return SAM2Tracker(model, num_frames, backward)


class _CurrentFrame:
    """The images of an inference state: one at a time, made when it is asked for."""

    def __init__(self, length: int, size: int) -> None:
        self._length, self._size = length, size
        self.index, self.frame = 0, np.zeros((0, 0, 3), np.uint8)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Tensor:
        if index != self.index:
            raise IndexError(f"frame {index} has passed, this is frame {self.index}")
        return preprocess([self.frame], self._size)[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield self[self.index]


class SAM2Tracker:
    """SAM2's video predictor on frames that come one by one, without what no later frame reads.

    Each method is a call of the predictor's own, so the masks are its own to the bit. After each frame, the memories
    and pointers that are too old for the next one are dropped, and the masks of all frames but the last.

    Args:
        model: A model of the SAM2Base family.
        num_frames: Of the video, where it is known: in a video of fewer frames than ``max_obj_ptrs_in_encoder``, SAM2
            scales the ages of object pointers by their number.
        backward: Go back in time.
    """

    def __init__(self, model: SAM2Base, num_frames: int | None, backward: bool) -> None:
        self._predictor = as_video_predictor(model)
        self._backward, self._step = backward, -1 if backward else 1
        short = num_frames is not None and num_frames < self._predictor.max_obj_ptrs_in_encoder
        # SAM2 also stops to look back at the end of the video. Of a longer one it need not know where that is.
        length = num_frames if short and num_frames is not None else sys.maxsize
        self._frame = _CurrentFrame(length, self._predictor.image_size)
        self._state: dict[str, Any] | None = None

    @property
    def object_ids(self) -> list[int]:
        """Those that are tracked."""
        return [] if self._state is None else list(self._state["obj_ids"])

    def show(self, index: int, frame: NDArray[np.uint8]) -> None:
        """Make a frame the current one; what was prompted on the last one is remembered as it is now."""
        if self._state is not None and self.object_ids:
            self._predictor.propagate_in_video_preflight(self._state)
        self._frame.index, self._frame.frame = index, frame
        if self._state is not None:
            self._forget(self._state)

    def track(self) -> None:
        """Find every object on the current frame."""
        if self._state is not None and self.object_ids:
            propagate_one(self._predictor, self._state, self._frame.index, self._backward)

    def prompt(self, object_id: int, given: PromptArrays | NDArray[np.bool_], *, add: bool) -> None:
        """Start an object on the current frame, or correct what was tracked there."""
        predictor, frame = self._predictor, self._frame.index
        state = self._state = self._begin() if self._state is None else self._state
        if not isinstance(given, PromptArrays):
            network_mask(object_id, given, predictor.image_size)
            predictor.add_new_mask(state, frame, object_id, given)
            return
        points, labels, box = (None if a is None else a[0] for a in (given.points, given.labels, given.boxes))
        predictor.add_new_points_or_box(
            state, frame, object_id, points=points, labels=labels, box=box, clear_old_points=not add
        )

    def remove(self, object_id: int) -> None:
        """Forget an object."""
        assert self._state is not None
        self._predictor.remove_object(self._state, object_id, strict=True, need_output=False)

    @torch.inference_mode()
    def masks(self) -> dict[int, NDArray[np.float32]]:
        """Object id -> logits on the current frame, float32 ``[height, width]``."""
        if self._state is None or not self.object_ids:
            return {}
        latest = [self._latest(self._state, number) for number in range(len(self.object_ids))]
        _, logits = self._predictor._get_orig_video_res_output(self._state, torch.cat(latest))
        return dict(zip(self.object_ids, logits[:, 0].float().cpu().numpy(), strict=True))

    def _begin(self) -> dict[str, Any]:
        frame = self._frame
        height, width = frame.frame.shape[:2]
        index, frame.index = frame.index, 0
        state = state_of_images(self._predictor, frame, height, width)  # looks at frame 0
        frame.index = index
        state["cached_features"] = {index: state["cached_features"][0]}
        return state

    def _latest(self, state: dict[str, Any], number: int) -> Tensor:
        """Mask logits of an object on the current frame, those of the last prompt first."""
        for kind in ("temp_output_dict_per_obj", "output_dict_per_obj"):
            for outputs in state[kind][number].values():
                if (found := outputs.get(self._frame.index)) is not None:
                    return found["pred_masks"].to(state["device"])
        raise AssertionError(f"object {number} has no mask on frame {self._frame.index}")

    def _forget(self, state: dict[str, Any]) -> None:
        """Drop what the current frame and those to come don't look back to."""
        model, now = self._predictor, self._frame.index
        stride, count = model.memory_temporal_stride_for_eval, model.num_maskmem
        oldest = [memory_frame(now, ago, stride, self._backward) for ago in range(1, count)]
        memories = max(((now - t) * self._step for t in oldest), default=0)
        pointers = model.max_obj_ptrs_in_encoder - 1
        for outputs in state["output_dict_per_obj"].values():
            kept = outputs["non_cond_frame_outputs"]
            for t in list(kept):
                age = (now - t) * self._step
                if age > max(memories, pointers):
                    del kept[t]
                elif age > memories:
                    kept[t]["maskmem_features"] = kept[t]["maskmem_pos_enc"] = None
            for output in (*kept.values(), *outputs["cond_frame_outputs"].values()):
                output["pred_masks"] = None
        for tracked in state["frames_tracked_per_obj"].values():
            tracked.clear()
        for inputs in (*state["point_inputs_per_obj"].values(), *state["mask_inputs_per_obj"].values()):
            for t in [t for t in inputs if t != now]:
                del inputs[t]
