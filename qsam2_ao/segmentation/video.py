"""Objects through a video: from prompts on the first frame to a mask PNG for each frame, and an overlay video."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..compat.quiet import propagate_quietly
from ..data.pictures import list_pictures
from ..data.video import frame_rate, read_frames, write_video
from ..errors import DataError
from ..export import ExportedSAM2
from ..predictors import predictor_state
from ..reporting.overlay import draw_masks
from ..threads import one_thread_if_small
from .masks import label_map, save_label_map
from .prompts import ObjectPrompt

if TYPE_CHECKING:
    from sam2.sam2_video_predictor import SAM2VideoPredictor


@dataclass(frozen=True)
class TrackedVideo:
    """The files of a tracked video.

    Attributes:
        frames: How many frames it has.
        masks: Folder of a palette PNG of object ids for each frame.
        overlay: The video with the masks.
        visible: Object id -> on how many frames it was found.
    """

    frames: int
    masks: Path
    overlay: Path
    visible: dict[int, int]


def track_file(
    predictor: SAM2VideoPredictor | ExportedSAM2,
    video: str | os.PathLike[str],
    prompts: Mapping[int, ObjectPrompt],
    output: str | os.PathLike[str],
    *,
    frames: Sequence[NDArray[np.uint8]] | None = None,
    progress: bool = True,
) -> TrackedVideo:
    """Track objects and write ``masks/FRAME.png`` for every frame (object ids, as in DAVIS) and ``overlay.mp4``.

    Args:
        predictor: A ``SAM2VideoPredictor`` or an ``ExportedSAM2``.
        video: A video file or a folder of frames.
        prompts: Object id -> its prompts on the first frame.
        output: The folder to write to.
        frames: The frames, where they are read already, or not all of them are wanted.
        progress: Show a progress bar.

    Returns:
        The files, and how long each object was visible.

    Raises:
        DataError: The video cannot be read, or an exported model is to track from a mask.
        QSAM2Error: A file cannot be written.
        MissingPackageError: PyAV is not installed.

    Example:
        >>> tracked = track_file(model, "clip.mp4", {1: ObjectPrompt(box=(10, 20, 60, 80))}, "outputs")
    """
    video, output = Path(video), Path(output)
    frames = list(read_frames(video)) if frames is None else frames
    names = [path.stem for path in list_pictures(video)] if video.is_dir() else [f"{i:05d}" for i in range(len(frames))]
    visible = dict.fromkeys(prompts, 0)

    def pictures() -> Iterator[NDArray[np.uint8]]:
        tracked = track_frames(predictor, frames, prompts)
        for frame, ids in tqdm(tracked, "track", len(frames), unit="frame", disable=not progress):
            save_label_map(ids, output / "masks" / f"{names[frame]}.png")
            for object_id in visible:
                visible[object_id] += bool((ids == object_id).any())
            yield np.asarray(draw_masks(frames[frame], ids))

    overlay = output / "overlay.mp4"
    with one_thread_if_small(predictor):
        write_video(overlay, pictures(), frame_rate(video))
    return TrackedVideo(len(frames), output / "masks", overlay, visible)


def track_frames(
    predictor: SAM2VideoPredictor | ExportedSAM2,
    frames: Sequence[NDArray[np.uint8]],
    prompts: Mapping[int, ObjectPrompt],
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Run a video predictor over a clip.

    Args:
        predictor: A ``SAM2VideoPredictor`` or an ``ExportedSAM2``.
        frames: uint8 ``[height, width, 3]`` each, RGB, all of one size.
        prompts: Object id -> its prompts on the first frame.

    Yields:
        Index of the frame and its ids, uint8 ``[height, width]``, in the order of time.

    Raises:
        DataError: An exported model is to track from a mask.

    Example:
        >>> for frame, ids in track_frames(predictor, frames, {1: ObjectPrompt([(30, 40, 1)])}):
        ...     print(frame, ids.shape)
        0 (96, 96)
        1 (96, 96)
        2 (96, 96)
    """
    if isinstance(predictor, ExportedSAM2):
        if masked := [object_id for object_id, prompt in prompts.items() if prompt.mask is not None]:
            raise DataError(f"object {masked[0]} has a mask, and exported files track from clicks and boxes only")
        for frame, found in predictor.track(frames, {i: prompt.arrays() for i, prompt in prompts.items()}):
            yield frame, label_map(found)
        return
    state = predictor_state(predictor, frames)
    for object_id, prompt in prompts.items():
        if prompt.mask is not None:
            predictor.add_new_mask(state, 0, object_id, prompt.mask)
        else:
            predictor.add_new_points_or_box(state, 0, object_id, **prompt.arrays())
    for frame, object_ids, logits in propagate_quietly(predictor, state):
        masks = logits[:, 0].to(torch.float32).cpu().numpy()
        yield frame, label_map(dict(zip(object_ids, masks, strict=True)))
