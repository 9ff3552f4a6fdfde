"""What the models say: masks, times, and agreement with the first model."""

from __future__ import annotations

import base64
import io
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from ..comparison.contenders import Contender, kind_of
from ..errors import DataError, QSAM2Error
from ..evaluation.miou import mask_iou
from ..progress import tqdm
from ..reporting.overlay import colour
from ..segmentation import StreamingPredictor, label_map, save_label_map, segment_image
from ..segmentation.schedule import Direction, ObjectPrompt, Schedule, check_schedule
from ..segmentation.video import check_heard, hear
from ..spelling import counted
from ..stage import stage_of
from ..threads import one_thread_if_small
from .clips import Clip, Tracking

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

    from ..export import ExportedSAM2

FORWARD: Direction = "forward"


@dataclass(frozen=True)
class Entrant:
    """A loaded model.

    Attributes:
        contender: What it is called, and where it came from.
        model: The model.
        file_bytes: Of its file.
    """

    contender: Contender
    model: SAM2Base | ExportedSAM2
    file_bytes: int

    @property
    def images_only(self) -> bool:
        """Whether it cannot track, since its memory was never given weights."""
        return (stage_of(self.model) if isinstance(self.model, nn.Module) else self.model.settings).images_only

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"label": self.contender.label, "kind": kind_of(self.model), "file_bytes": self.file_bytes}


class Models:
    """The models of the page; they answer one user at a time, so that times are their own.

    Args:
        entrants: The first is what the others are compared with.
    """

    def __init__(self, entrants: Sequence[Entrant]) -> None:
        self.entrants = list(entrants)
        self._turn, self._starting = threading.Lock(), threading.Lock()
        self._threads: list[threading.Thread] = []

    def warm_up(self) -> None:
        """Let every model segment and, if it can, track once: what only the first time takes is in nobody's times."""
        picture, prompts = np.zeros((64, 64, 3), np.uint8), {1: ObjectPrompt([(32, 32, 1)])}
        for entrant in tqdm(self.entrants, desc="warming up", unit="model"):
            with one_thread_if_small(entrant.model):
                segment_image(entrant.model, Image.fromarray(picture), prompts)
            if not entrant.images_only:
                stream = StreamingPredictor(entrant.model)
                hear(stream, stream.start(picture), prompts)
                stream.step(picture)

    def segment(
        self, picture: NDArray[np.uint8], prompts: Mapping[int, ObjectPrompt]
    ) -> tuple[list[dict[str, Any]], list[NDArray[np.uint8]]]:
        """Every model's answer about a picture.

        Returns:
            For each model its milliseconds, its objects (id, score, IoU with the first model's, pixels) and the masks
            as a PNG to lay over the picture; and for each model its map of object ids.

        Raises:
            QSAM2Error: A prompt does not fit the picture.
        """
        image, answers, maps = Image.fromarray(picture), [], []
        first: dict[int, NDArray[np.bool_]] = {}
        with self._turn:
            for entrant in self.entrants:
                with one_thread_if_small(entrant.model):
                    started = time.perf_counter()
                    logits, scores = segment_image(entrant.model, image, prompts)
                    milliseconds = 1e3 * (time.perf_counter() - started)
                masks = {number: values > 0 for number, values in logits.items()}
                first = first or masks
                objects = [
                    {
                        "id": number,
                        "score": scores[number],
                        "iou": float(mask_iou(masks[number], first[number])),
                        "pixels": int(masks[number].sum()),
                    }
                    for number in prompts
                ]
                maps.append(label_map(logits))
                overlay = base64.b64encode(overlay_png(maps[-1])).decode()
                answers.append({"ms": milliseconds, "objects": objects, "overlay": f"data:image/png;base64,{overlay}"})
        return answers, maps

    def start_tracking(self, clip: Clip, schedule: Schedule) -> Tracking:
        """Track a clip in a thread of its own; an earlier tracking of it is stopped.

        Raises:
            QSAM2Error: A prompt does not fit the clip, or a model cannot hear it.
        """
        check_schedule(schedule, clip.size, clip.length)
        for entrant in self.entrants:
            check_heard(entrant.model, schedule)
        with self._starting:  # two requests at once would not see each other's
            if clip.tracking is not None:
                clip.tracking.cancelled.set()
            tracking = clip.tracking = Tracking(clip.length - min(schedule))
            # In the request's context, which has the size limit of pictures.
            arguments = (self._track, clip, schedule, tracking)
            thread = threading.Thread(target=copy_context().run, args=arguments, daemon=True)
            self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]
            thread.start()
        return tracking

    def wait(self) -> None:
        """Wait for trackings that were cancelled, a frame at most each: torch aborts a process that ends meanwhile."""
        for thread in self._threads:
            thread.join()

    def _track(self, clip: Clip, schedule: Schedule, tracking: Tracking) -> None:
        begin = min(schedule)
        streams = [StreamingPredictor(entrant.model, num_frames=clip.length) for entrant in self.entrants]
        try:
            with self._turn:  # an earlier tracking writes inside its turn only, and none once it is cancelled
                if tracking.cancelled.is_set():
                    return
                shutil.rmtree(clip.folder / "masks", ignore_errors=True)
            for index, picture in clip.frames_from(begin):
                said = schedule.get(index, {})
                found = []
                with self._turn:  # taken anew for each frame: others may click in between
                    if tracking.cancelled.is_set():
                        return
                    for stream in streams:
                        started = time.perf_counter()
                        masks = stream.start(picture, index) if index == begin else stream.step(picture)
                        masks = hear(stream, masks, said)
                        found.append((masks, 1e3 * (time.perf_counter() - started)))
                    for number, (masks, _) in enumerate(found):
                        save_label_map(masks.ids, clip.mask_path(number, index))
                first = found[0][0].logits
                tracking.frames[index] = [{"ms": ms, "iou": _mean_iou(first, masks.logits)} for masks, ms in found]
                tracking.done += 1
            if tracking.done < tracking.total:
                raise DataError(f"the clip breaks off after {counted(begin + tracking.done, 'frame')}")
        except QSAM2Error as error:
            tracking.error = str(error)
        except Exception as error:
            tracking.error = f"tracking failed: {error}"
            raise


def _mean_iou(first: Mapping[int, NDArray[np.float32]], other: Mapping[int, NDArray[np.float32]]) -> float | None:
    ious = [float(mask_iou(first[number] > 0, other[number] > 0)) for number in first if number in other]
    return float(np.mean(ious)) if ious else None


def overlay_png(ids: NDArray[np.uint8]) -> bytes:
    """Masks to lay over a picture: each object in its colour, half transparent, the rest empty."""
    table = np.zeros((256, 4), np.uint8)
    for number in range(1, 255):
        table[number] = (*colour(number), 130)
    buffer = io.BytesIO()
    Image.fromarray(table[ids]).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
