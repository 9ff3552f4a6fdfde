"""Objects through a clip: from prompts on any frame to a mask PNG for each frame, and an overlay video."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from ..data.frames import ClipFrames
from ..data.listing import list_pictures
from ..data.masks import read_ids
from ..data.types import Indexed
from ..data.video import frame_rate, write_video
from ..errors import DataError, QSAM2Error
from ..export import ExportedSAM2
from ..interrupts import interrupts_between_steps
from ..progress import tqdm
from ..reporting.label_maps import is_label_map, label_map, save_label_map
from ..reporting.overlay import draw_masks
from ..spelling import counted
from .saving import MASKS_AND_OVERLAY, SavedAs, check_outputs, coco_files
from .schedule import Direction, ObjectPrompt, Prompts, Schedule, as_schedule, check_for_exported, check_schedule
from .streaming import FrameMasks, StreamingPredictor

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

Frames = Iterable[NDArray[np.uint8]] | Indexed[NDArray[np.uint8]]


@dataclass(frozen=True)
class TrackedVideo:
    """The files of a tracked video.

    Attributes:
        frames: How many frames it has.
        masks: Folder of a palette PNG of object ids for each frame; None where it was not wanted, as the others.
        overlay: The video with the masks.
        visible: Object id -> on how many frames it was found.
        rle: COCO's annotations with run lengths.
        polygons: COCO's annotations with polygons.
    """

    frames: int
    masks: Path | None
    overlay: Path | None
    visible: dict[int, int]
    rle: Path | None = None
    polygons: Path | None = None


def track_file(
    predictor: SAM2Base | ExportedSAM2,
    video: str | os.PathLike[str],
    prompts: Prompts,
    output: str | os.PathLike[str],
    *,
    direction: Direction = "forward",
    save: Collection[SavedAs] = MASKS_AND_OVERLAY,
    frames: Indexed[NDArray[np.uint8]] | None = None,
    progress: bool = True,
) -> TrackedVideo:
    """Track objects and write ``masks/FRAME.png`` for every frame (object ids, as in DAVIS) and ``overlay.mp4``.

    Frames are read, tracked and written one by one: memory does not grow with the length of the clip. After Ctrl-C,
    the frame under way is finished and the files hold what was tracked until then, as they do after an error.

    Args:
        predictor: A model of the SAM2Base family, or an ``ExportedSAM2``.
        video: A video file or a folder of frames.
        prompts: Object id -> its prompts on the first frame; or frame -> object id -> its prompts there, or None where
            it is removed.
        output: The folder to write to.
        direction: As for :func:`track_frames`.
        save: What to write: "masks", "overlay", "rle" (``rle.json``, COCO's run lengths of all frames) or "polygons"
            (``polygons.json``).
        frames: The frames, where not all of them are wanted.
        progress: Show a progress bar.

    Returns:
        The files, and how long each object was visible.

    Raises:
        DataError: The video cannot be read or its frames would be replaced, a prompt doesn't fit it, a model that an
            older version exported is to read a mask, or ``save`` has an unknown name. It says how many frames were
            finished, and the files are closed.
        QSAM2Error: A file cannot be written.
        MissingPackageError: PyAV is not installed.
        KeyboardInterrupt: Ctrl-C, once the files are closed.

    Example:
        >>> tracked = track_file(model, "clip.mp4", {1: ObjectPrompt(box=(10, 20, 60, 80))}, "outputs")
    """
    video, output = Path(video), Path(output)
    paths = list_pictures(video) if video.is_dir() else None
    check_outputs(save, output, read=paths or [video])
    frames = ClipFrames(video) if frames is None else frames
    schedule = as_schedule(prompts)
    visible = dict.fromkeys(sorted({object_id for found in schedule.values() for object_id in found}), 0)
    rate, done, shown = frame_rate(video), 0, set[int]()
    store: _MaskFolder | None = None
    overlay = output / "overlay.mp4" if "overlay" in save else None
    masks = output / "masks" if "masks" in save else None
    bar = tqdm(desc="track", total=_steps(schedule, direction, len(frames)), unit="frame", disable=not progress)

    broken: Exception | None = None

    def pictures() -> Iterator[NDArray[np.uint8]]:
        nonlocal done, broken
        try:
            for frame, picture, ids in tracked:
                if masks and store is not None:
                    store.save(frame, ids)
                files.add(paths[frame].name if paths else f"{frame:05d}.jpg", ids)
                for object_id in visible:
                    visible[object_id] += bool((ids == object_id).any())
                shown.add(frame)
                done += 1
                yield np.asarray(draw_masks(picture, ids)) if overlay else picture
        except (KeyboardInterrupt, Exception) as error:
            if not done:
                raise  # there is nothing to close
            broken = None if isinstance(error, KeyboardInterrupt) else error

    try:
        with ExitStack() as stack, bar, interrupts_between_steps() as interruptible:
            # Going back needs a place for masks too.
            folder = masks or Path(stack.enter_context(TemporaryDirectory(prefix="qsam2-track-")))
            store = _MaskFolder(folder, [path.stem for path in paths] if paths else None)
            store.check_alone(len(frames))

            def finished() -> None:
                bar.update()
                with interruptible():
                    pass

            tracked = _track(predictor, frames, schedule, direction, store, finished)
            with coco_files(save, output) as files:
                if overlay:
                    write_video(overlay, pictures(), rate)
                else:
                    deque(pictures(), maxlen=0)
            if broken is not None:
                raise broken
    except (KeyboardInterrupt, Exception) as error:
        if store is not None and store.begun:
            store.keep(shown)
        what = "no frame was finished"
        if done:
            places = " and ".join(str(place) for place in (masks, overlay, *files.paths) if place)
            what = f"{done} of {len(frames)} frames are in {places}"
        if error is broken and isinstance(error, QSAM2Error):
            kind = DataError if isinstance(error, DataError) else QSAM2Error
            raise kind(f"{error}; {what}") from error
        if not isinstance(error, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt(what) from error
    return TrackedVideo(done, masks, overlay, visible, files.rle, files.polygons)


def track_frames(
    predictor: SAM2Base | ExportedSAM2, frames: Frames, prompts: Prompts, *, direction: Direction = "forward"
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Run a video predictor over a clip.

    On each frame, objects are tracked first and then its prompts are heard: one for a new object starts it, one for an
    object that was tracked there corrects its mask. So results up to a frame don't depend on prompts after it.

    Args:
        predictor: A model of the SAM2Base family, or an ``ExportedSAM2``.
        frames: uint8 ``[height, width, 3]`` each, RGB, all of one size: an iterator; or, for other directions than
            forward, a list, an array, or :class:`~qsam2_ao.data.frames.ClipFrames`.
        prompts: Object id -> its prompts on the first frame; or frame -> object id -> its prompts there, or None where
            it is removed.
        direction: "forward" in time; "backward" from the last prompt to the first frame, hearing prompts in that
            order; or "both": forward, and each object backward from its first prompt, where the ones that were there
            already keep their pixels.

    Returns:
        An iterator over the index of each frame and its ids, uint8 ``[height, width]``, in the order of time.

    Raises:
        DataError: There are no frames or prompts, one doesn't fit the other, the frames cannot be read backward, or
            a model that an older version exported is to read a mask.

    Example:
        >>> for frame, ids in track_frames(predictor, frames, {1: ObjectPrompt([(30, 40, 1)])}):
        ...     print(frame, ids.shape)
        0 (96, 96)
        1 (96, 96)
        2 (96, 96)
    """
    schedule = as_schedule(prompts)

    def tracked() -> Iterator[tuple[int, NDArray[np.uint8]]]:
        with TemporaryDirectory(prefix="qsam2-track-") as folder:
            for frame, _, ids in _track(
                predictor, frames, schedule, direction, _MaskFolder(Path(folder)), lambda: None
            ):
                yield frame, ids

    return tracked()


class _MaskFolder:
    """Id maps as PNG files, one for each frame."""

    def __init__(self, folder: Path, names: list[str] | None = None) -> None:
        self.folder, self._names, self.begun = folder, names, False

    def _path(self, frame: int) -> Path:
        return self.folder / f"{self._names[frame] if self._names else f'{frame:05d}'}.png"

    def check_alone(self, count: int) -> None:
        """Refuse masks that are there and would be none of a clip's of so many frames, or are the user's own."""
        own, found = {self._path(frame).name for frame in range(count)}, sorted(self.folder.glob("*.png"))
        if others := [path.name for path in found if path.name not in own]:
            raise DataError(
                f"{self.folder} holds {counted(len(others), 'mask')} of other frames, such as {others[0]}, which would "
                "be taken for this clip's; name another output, or delete them"
            )
        if kept := [path.name for path in found if not is_label_map(path)]:
            raise DataError(
                f"{self.folder} holds {counted(len(kept), 'mask')} that this version of the program did not write, "
                f"such as {kept[0]}, and that would be replaced; name another output"
            )

    def keep(self, frames: Collection[int]) -> None:
        """Delete all maps but those of some frames."""
        kept = {self._path(frame).name for frame in frames}
        for path in self.folder.glob("*.png"):
            if path.name not in kept:
                path.unlink()

    def save(self, frame: int, ids: NDArray[np.uint8]) -> None:
        if not self.begun:
            self.keep(())
            self.begun = True
        save_label_map(ids, self._path(frame))

    def load(self, frame: int) -> NDArray[np.uint8]:
        return read_ids(self._path(frame))


def _steps(schedule: Schedule, direction: Direction, frames: int) -> int:
    """How many frames are tracked or passed, there and back."""
    return frames + (0 if direction == "forward" else max(_first_frames(schedule, direction).values()) + 1)


def _first_frames(schedule: Schedule, direction: Direction) -> dict[int, int]:
    """Object id -> the frame on which going back begins for it."""
    found: dict[int, int] = {}
    for frame in sorted(schedule, reverse=direction != "backward"):
        found.update({object_id: frame for object_id, prompt in schedule[frame].items() if prompt is not None})
    return found


def _track(
    model: SAM2Base | ExportedSAM2,
    frames: Frames,
    schedule: Schedule,
    direction: Direction,
    store: _MaskFolder,
    finished: Callable[[], None],
) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Index, picture and ids of each frame in the order of time; what comes of going back is kept in a store."""
    if direction not in get_args(Direction):
        raise DataError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
    count = len(frames) if _indexed(frames) else None
    source = iter(frames)
    first = next(source, None)
    if first is None:
        raise DataError("a video needs at least one frame")
    check_schedule(schedule, (np.shape(first)[1], np.shape(first)[0]), count, direction)
    check_heard(model, schedule, direction)
    starts = _first_frames(schedule, direction)
    going_back: range = range(0)
    if direction != "forward":
        if not _indexed(frames):
            raise DataError(
                f"tracking {direction} reads frames again, which an iterator cannot do: give a list, an array or "
                "ClipFrames(path)"
            )
        going_back = range(max(starts.values()), -1, -1)
        _track_back(model, frames, schedule, direction, starts, store, finished)
    forward = {} if direction == "backward" else schedule
    begin = min(forward, default=None)
    stream = StreamingPredictor(model, num_frames=count)
    index = -1
    for index, picture in enumerate(chain((first,), source)):
        if begin is None or index < begin:
            ids = np.zeros(np.shape(first)[:2], np.uint8)
        else:
            masks = stream.start(picture, index) if index == begin else stream.step(picture)
            ids = hear(stream, masks, forward.get(index, {})).ids
        if index in going_back and (direction == "backward" or any(start > index for start in starts.values())):
            ids = np.where(ids > 0, ids, store.load(index))
        yield index, np.asarray(picture), ids
        finished()
    if unheard := [frame for frame in schedule if frame > index]:
        raise DataError(
            f"there are prompts for frame {unheard[0]}, but the clip ended after {counted(index + 1, 'frame')}"
        )


def _indexed(frames: Frames) -> TypeGuard[Indexed[NDArray[np.uint8]]]:
    return hasattr(frames, "__len__") and hasattr(frames, "__getitem__")


def _track_back(
    model: SAM2Base | ExportedSAM2,
    frames: Indexed[NDArray[np.uint8]],
    schedule: Schedule,
    direction: Direction,
    starts: dict[int, int],
    store: _MaskFolder,
    finished: Callable[[], None],
) -> None:
    """Follow objects to the first frame, and store the ids of those that are not tracked forwards there."""
    stream = StreamingPredictor(model, num_frames=len(frames), backward=True)
    begin = max(starts.values())
    for index in range(begin, -1, -1):
        masks = stream.start(frames[index], index) if index == begin else stream.step(frames[index])
        said = schedule.get(index, {})
        if direction == "both":  # what else is said about them is for the way forward
            said = {object_id: prompt for object_id, prompt in said.items() if starts[object_id] == index}
        masks = hear(stream, masks, said)
        logits = {i: m for i, m in masks.logits.items() if direction == "backward" or starts[i] > index}
        store.save(index, label_map(logits) if logits else np.zeros(masks.size[::-1], np.uint8))
        finished()


def check_heard(model: SAM2Base | ExportedSAM2, schedule: Schedule, direction: Direction = "forward") -> None:
    """Check that a model can hear every prompt, which those that an older version exported can't.

    Args:
        model: A model of the SAM2Base family, or an ``ExportedSAM2``.
        schedule: Frame -> object id -> prompts.
        direction: As for :func:`track_file`.

    Raises:
        DataError: It can't; the message names the prompt.
    """
    if isinstance(model, ExportedSAM2) and not model.settings.mask_prompts:
        check_for_exported(schedule, direction)


def hear(stream: StreamingPredictor, masks: FrameMasks, said: Mapping[int, ObjectPrompt | None]) -> FrameMasks:
    """Pass on what is said about a frame.

    Args:
        stream: At that frame.
        masks: What is found on it so far.
        said: Object id -> its prompts there, or None where it is removed.

    Returns:
        What is found on it then.
    """
    for object_id, prompt in said.items():
        if prompt is None:
            masks = stream.remove(object_id)
        elif prompt.mask is not None:
            masks = stream.prompt(object_id, mask=prompt.mask)
        else:
            masks = stream.prompt(object_id, **prompt.arrays())
    return masks
