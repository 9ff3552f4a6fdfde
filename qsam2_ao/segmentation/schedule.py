"""What is said about which object on which frame of a clip."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.masks import VOID, read_ids
from ..data.prompts import OBJECT_NAMES, check_object_prompt, check_prompts, mask_and_more
from ..errors import DataError
from ..spelling import counted

Direction = Literal["forward", "backward", "both"]


class PromptDict(TypedDict):
    """Arguments of SAM2's predictors."""

    points: NDArray[np.float32] | None
    labels: NDArray[np.int32] | None
    box: NDArray[np.float32] | None


@dataclass
class ObjectPrompt:
    """What the user said about one object.

    Attributes:
        points: Clicks, ``(x, y, label)`` in pixels, label 1 or 0.
        box: ``(x0, y0, x1, y1)`` in pixels.
        mask: bool ``[height, width]``.
    """

    points: list[tuple[float, float, int]] = field(default_factory=list)
    box: tuple[float, float, float, float] | None = None
    mask: NDArray[np.bool_] | None = None

    def arrays(self) -> PromptDict:
        """Points float32 ``[n, 2]``, labels int32 ``[n]`` and box float32 ``[4]``; None where absent."""
        return {
            "points": np.array([p[:2] for p in self.points], np.float32) if len(self.points) else None,
            "labels": np.array([p[2] for p in self.points], np.int32) if len(self.points) else None,
            "box": np.array(self.box, np.float32) if self.box is not None else None,
        }

    def check(self, size: tuple[int, int], where: str = "") -> None:
        """Check it against a picture.

        Args:
            size: Width and height in pixels.
            where: What errors start with.

        Raises:
            DataError: It breaks the rules of :func:`~qsam2_ao.data.prompts.check_prompts`, or has a mask and more.
        """
        check_object_prompt(size, **self.arrays(), mask=self.mask, where=where)


#: Frame -> object id -> what is said about it there; None removes the object.
Schedule: TypeAlias = dict[int, dict[int, "ObjectPrompt | None"]]
Prompts: TypeAlias = "Mapping[int, ObjectPrompt] | Mapping[int, Mapping[int, ObjectPrompt | None]]"


def as_schedule(prompts: Prompts) -> Schedule:
    """Prompts by frame, in the order of frames; those that name no frame are for the first.

    Raises:
        DataError: There are none, or a key is no frame or object id.

    Example:
        >>> as_schedule({1: ObjectPrompt(box=(10, 20, 60, 80))}).keys()
        dict_keys([0])
    """
    first = {key: value for key, value in prompts.items() if isinstance(value, ObjectPrompt)}
    if first and len(first) < len(prompts):
        raise DataError("give {object: prompt} for the first frame, or {frame: {object: prompt}}, not a mixture")
    later = {key: value for key, value in prompts.items() if isinstance(value, Mapping)}
    schedule: Schedule = {0: dict(first)} if first else {frame: dict(later[frame]) for frame in sorted(later)}
    schedule = {frame: found for frame, found in schedule.items() if found}
    if len(first) + len(later) < len(prompts) or not any(p for found in schedule.values() for p in found.values()):
        raise DataError("tracking needs a click, a box or a mask for at least one object: {frame: {object: prompt}}")
    for frame, found in schedule.items():
        if frame < 0:
            raise DataError(f"frame {frame} cannot have prompts: frames are counted from 0")
        for object_id in found:
            check_object_id(object_id, f"frame {frame}: ")
    return schedule


def check_schedule(
    schedule: Schedule, size: tuple[int, int], frames: int | None, direction: Direction = "forward"
) -> None:
    """Check prompts against a clip before anything is computed.

    Args:
        schedule: The prompts.
        size: Width and height of the frames.
        frames: How many there are, where that is known.
        direction: Of tracking.

    Raises:
        DataError: A prompt breaks the rules, a frame is beyond the clip, or an object is removed that isn't there.
    """
    known: set[int] = set()
    for frame in sorted(schedule, reverse=direction == "backward"):
        _check_frame(frame, frames, "")
        for object_id, prompt in schedule[frame].items():
            where = f"frame {frame}, object {object_id}: "
            if prompt is not None:
                prompt.check(size, where)
                known.add(object_id)
            elif object_id not in known:
                raise DataError(f"{where}it cannot be removed, because it is not tracked there; prompt it before")
            else:
                known.remove(object_id)


def check_for_exported(schedule: Schedule, direction: Direction = "forward") -> None:
    """Check that files exported by an older version can hear every prompt: their decoder reads no masks.

    Raises:
        DataError: A prompt is a mask, or a correction of an object that is tracked already.
    """
    known: set[int] = set()
    for frame in sorted(schedule, reverse=direction == "backward"):
        for object_id, prompt in schedule[frame].items():
            where = f"frame {frame}, object {object_id}: "
            if prompt is None:
                known.discard(object_id)
                continue
            if prompt.mask is not None:
                raise DataError(
                    f"{where}it is a mask, and these files, which an older version wrote, track from clicks and boxes "
                    "only; export the model again"
                )
            if object_id in known:
                raise DataError(
                    f"{where}the object is tracked already, and these files, which an older version wrote, cannot "
                    "correct a mask; export the model again, or use another object id"
                )
            known.add(object_id)


def check_object_id(object_id: object, where: str) -> int:
    """An id that fits a mask PNG.

    Raises:
        DataError: It doesn't.
    """
    if isinstance(object_id, bool) or not isinstance(object_id, (int, np.integer)) or not 1 <= object_id < VOID:
        raise DataError(f"{where}{object_id!r} is no object id; object ids are 1 to 254")
    return int(object_id)


class ScheduleBuilder:
    """Collects a schedule from what is given one by one.

    Args:
        size: Width and height of the picture or the frames.
        frames: How many frames there are, where that is known.
    """

    def __init__(self, size: tuple[int, int], frames: int | None = None) -> None:
        self._size, self._frames = size, frames
        self._schedule: Schedule = {}

    def add_points(self, where: str, frame: int, object_id: int, points: ArrayLike, labels: ArrayLike | None) -> None:
        """Clicks; without labels, all are inside."""
        if labels is None and isinstance(points, list):
            labels = [1] * len(points)
        given = check_prompts(self._size, points, labels, names=OBJECT_NAMES, where=where)
        prompt = self._prompt(where, frame, object_id)
        if prompt.mask is not None:
            raise DataError(mask_and_more(f"{where}object {object_id}", frame))
        if given.batch != 1 or given.points is None or given.labels is None:
            raise DataError(f"{where}points are for {given.batch} objects; give each its own item")
        found = zip(np.reshape(np.asarray(points, float), (-1, 2)).tolist(), given.labels[0].tolist(), strict=True)
        prompt.points += [(x, y, label) for (x, y), label in found]

    def add_box(self, where: str, frame: int, object_id: int, box: ArrayLike, hint: str = "") -> None:
        """The box of an object."""
        given = check_prompts(self._size, box=box, names=OBJECT_NAMES, where=where)
        prompt = self._prompt(where, frame, object_id)
        if given.batch != 1:
            raise DataError(f"{where}box is for {given.batch} objects; give each its own item")
        if prompt.box is not None:
            raise DataError(f"{where}object {object_id} has two boxes{_on_frame(frame)}{hint}")
        if prompt.mask is not None:
            raise DataError(mask_and_more(f"{where}object {object_id}", frame))
        x0, y0, x1, y1 = np.reshape(np.asarray(box, float), -1).tolist()
        prompt.box = (x0, y0, x1, y1)

    def add_mask(self, where: str, frame: int, object_id: int | None, file: str | os.PathLike[str]) -> None:
        """A mask file; without an object, it holds the ids itself, unless it is black and white."""
        for number, mask in self._read_mask(where, object_id, file).items():
            prompt = self._prompt(where, frame, number)
            if prompt.mask is not None or prompt.points or prompt.box is not None:
                raise DataError(mask_and_more(f"{where}{file}: object {number}", frame))
            prompt.mask = mask

    def remove(self, where: str, frame: int, object_id: int) -> None:
        """Say that an object is not to be followed from a frame on."""
        found = self._on(where, frame, object_id)
        if object_id in found:
            raise DataError(f"{where}object {object_id} has a prompt on frame {frame} and is removed there; choose one")
        found[object_id] = None

    def schedule(self) -> Schedule:
        """What was collected, by frame and object id."""
        return {frame: dict(sorted(found.items())) for frame, found in sorted(self._schedule.items())}

    def _on(self, where: str, frame: int, object_id: int) -> dict[int, ObjectPrompt | None]:
        check_object_id(object_id, where)
        _check_frame(frame, self._frames, where)
        return self._schedule.setdefault(frame, {})

    def _prompt(self, where: str, frame: int, object_id: int) -> ObjectPrompt:
        prompt = self._on(where, frame, object_id).setdefault(object_id, ObjectPrompt())
        if prompt is None:
            raise DataError(f"{where}object {object_id} has a prompt on frame {frame} and is removed there; choose one")
        return prompt

    def _read_mask(
        self, where: str, object_id: int | None, file: str | os.PathLike[str]
    ) -> dict[int, NDArray[np.bool_]]:
        try:
            ids = read_ids(file)
        except DataError as error:
            raise DataError(f"{where}{error}") from error
        if ids.shape != self._size[::-1]:
            raise DataError(
                f"{where}{file} is {ids.shape[1]} x {ids.shape[0]} pixels but the picture is "
                f"{self._size[0]} x {self._size[1]}; resize the mask without smoothing"
            )
        found = [int(value) for value in np.unique(ids) if value not in (0, VOID)]
        if not found:
            raise DataError(f"{where}{file} is empty: every pixel is 0 (background) or {VOID} (void)")
        if object_id is not None:
            return {object_id: np.isin(ids, found)}
        return {value: ids == value for value in found}


def _on_frame(frame: int) -> str:
    return f" on frame {frame}" if frame else ""


def _check_frame(frame: int, frames: int | None, where: str) -> None:
    if frames is not None and frame >= frames:
        raise DataError(
            f"{where}frame {frame} is beyond the clip, which has {counted(frames, 'frame')}, 0 to {frames - 1}"
        )
