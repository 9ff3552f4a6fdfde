"""Tracking in frames that come one by one: from a camera, a network stream or a file of any length."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ..data.prompts import check_object_prompt
from ..errors import DataError
from ..predictors import eval_mode
from ..reporting.label_maps import label_map
from ..threads import one_thread_if_small
from .schedule import check_object_id
from .trackers import make_tracker

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

    from ..export import ExportedSAM2
    from .trackers import Tracker


@dataclass(frozen=True)
class FrameMasks:
    """The objects on one frame.

    Attributes:
        frame: Index of the frame.
        logits: Object id -> mask logits, float32 ``[height, width]``; above 0 is inside.
        size: Width and height in pixels.
        latency_ms: From the call to the masks, in milliseconds.
    """

    frame: int
    logits: dict[int, NDArray[np.float32]]
    size: tuple[int, int]
    latency_ms: float

    @property
    def ids(self) -> NDArray[np.uint8]:
        """The surest object's id for each pixel, 0 where there is none: uint8 ``[height, width]``."""
        return label_map(self.logits) if self.logits else np.zeros(self.size[::-1], np.uint8)


class StreamingPredictor:
    """Objects followed through frames that come one by one, with the masks of ``SAM2VideoPredictor`` to the bit.

    Memory does not grow with the number of frames. A frame that has passed is gone: prompts are about the current one.
    A prompt for an object that was tracked on it corrects its mask, one for a new object starts it there. One
    predictor is for one video and one thread.

    Args:
        model: A model of the SAM2Base family, in float, prepared, quantized or deployed, or an ``ExportedSAM2``.
        num_frames: How many frames will come, where that is known. It matters only below the model's
            ``max_obj_ptrs_in_encoder`` (16): SAM2 looks at a shorter video in another way.
        backward: The frames come in reverse order; the first one needs its ``index``.

    Raises:
        GraphTraceError: It is not a SAM2 model.

    Example:
        >>> stream = StreamingPredictor(load_embedded())
        >>> stream.start(frames[0])  # doctest: +SKIP
        >>> stream.prompt(1, points=[[30, 40]], labels=[1])  # doctest: +SKIP
        >>> for frame in camera:  # doctest: +SKIP
        ...     masks = stream.step(frame)
        ...     print(masks.frame, (masks.ids == 1).sum(), f"{masks.latency_ms:.0f} ms")
    """

    def __init__(
        self, model: SAM2Base | ExportedSAM2, *, num_frames: int | None = None, backward: bool = False
    ) -> None:
        self._model, self._num_frames, self._backward = model, num_frames, backward
        self._tracker: Tracker | None = None
        self._index, self._size = 0, (0, 0)
        self._in_training = False

    @property
    def object_ids(self) -> list[int]:
        """Those that are followed, in the order of their first prompts."""
        return [] if self._tracker is None else self._tracker.object_ids

    def start(self, frame: NDArray[np.uint8], index: int = 0) -> FrameMasks:
        """Begin a video, and forget the one before.

        Args:
            frame: uint8 ``[height, width, 3]``, RGB.
            index: The number of the frame in the video.

        Returns:
            No objects yet.

        Raises:
            DataError: The frame has another type or shape, or the index is negative.
        """
        started = time.perf_counter()
        if index < 0:
            raise DataError(f"index must be 0 or more, not {index}")
        frame = _checked(frame, index, None)
        self._index, self._size = index, (frame.shape[1], frame.shape[0])
        self._in_training = isinstance(self._model, nn.Module) and any(m.training for m in self._model.modules())
        self._tracker = make_tracker(self._model, self._num_frames, self._backward)
        self._tracker.show(index, frame)
        return self._result(started)

    def step(self, frame: NDArray[np.uint8]) -> FrameMasks:
        """Take the next frame (with ``backward``, the one before) and find every object on it.

        Args:
            frame: uint8 ``[height, width, 3]``, RGB, of the first one's size.

        Returns:
            The masks.

        Raises:
            DataError: There was no ``start``, the frame has another type or size, or there is none before frame 0.
        """
        started = time.perf_counter()
        tracker, index = self._running(), self._index + (-1 if self._backward else 1)
        if index < 0:
            raise DataError("there is no frame before frame 0")
        frame = _checked(frame, index, self._size)
        with self._settings():
            tracker.show(index, frame)
            self._index = index
            tracker.track()
            return self._result(started)

    def prompt(
        self,
        object_id: int,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        *,
        add: bool = False,
        frame: int | None = None,
    ) -> FrameMasks:
        """Say where an object is on the current frame: a new one, or one whose mask is wrong.

        Args:
            object_id: 1 to 254.
            points: ``[N, 2]``, x and y in pixels.
            labels: ``[N]``, 1 inside and 0 outside.
            box: ``[4]``, left, top, right and bottom in pixels.
            mask: bool ``[height, width]``, instead of points and box.
            add: Keep the object's earlier points on this frame; without, the new ones replace them.
            frame: Index of the frame that is meant, to make sure that it is still the current one.

        Returns:
            All masks of the frame as they are now.

        Raises:
            DataError: There was no ``start``; the id is not 1 to 254; the prompt breaks the rules of
                :func:`~qsam2_ao.data.prompts.check_prompts`; the frame has passed; or an older version exported the
                model, whose decoder reads no masks and so can't correct them either.
        """
        started = time.perf_counter()
        tracker = self._running()
        check_object_id(object_id, "")
        if frame is not None and frame != self._index:
            state = "has passed" if (frame < self._index) != self._backward else "has not come yet"
            raise DataError(
                f"frame {frame} {state}: the stream is at frame {self._index} and cannot be read again; prompt the "
                "current frame, or give a file or a list of frames to track_frames, which takes prompts for any frame"
            )
        if add and (box is not None or mask is not None):
            raise DataError("a box or a mask replaces earlier points: give it without add=True")
        given = check_object_prompt(self._size, points, labels, box, mask, where=f"object {object_id}: ")
        with self._settings():
            tracker.prompt(object_id, given, add=add)
            return self._result(started)

    def remove(self, object_id: int) -> FrameMasks:
        """Stop following an object.

        Args:
            object_id: Its id, which may be used again.

        Returns:
            The masks that remain on the frame.

        Raises:
            DataError: There is no such object.
        """
        started = time.perf_counter()
        tracker = self._running()
        if object_id not in tracker.object_ids:
            known = ", ".join(map(str, tracker.object_ids)) or "none"
            raise DataError(f"object {object_id} cannot be removed: it is not tracked on frame {self._index} ({known})")
        with self._settings():
            tracker.remove(object_id)
            return self._result(started)

    def _running(self) -> Tracker:
        if self._tracker is None:
            raise DataError("there is no video yet: call start with its first frame")
        return self._tracker

    def _result(self, started: float) -> FrameMasks:
        logits = self._running().masks()
        return FrameMasks(self._index, logits, self._size, (time.perf_counter() - started) * 1000)

    @contextmanager
    def _settings(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(one_thread_if_small(self._model))
            if self._in_training and isinstance(self._model, nn.Module):
                stack.enter_context(eval_mode(self._model))
            yield


def _checked(frame: NDArray[np.uint8], index: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    frame = np.asarray(frame)
    wanted = "[height, width, 3]" if size is None else f"[{size[1]}, {size[0]}, 3], as the first one was"
    wrong = frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape or (size and frame.shape[1::-1] != size)
    if frame.dtype != np.uint8 or wrong:
        raise DataError(f"frame {index} is {frame.dtype} {list(frame.shape)}; wanted RGB, uint8 {wanted}")
    return frame.copy()  # which is encoded when an object is first told, and callers draw on theirs
