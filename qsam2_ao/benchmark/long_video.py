"""Memory and latency over a long video, through all that ``qsam2 track`` does: reading, tracking, writing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..data.frames import ClipFrames
from ..data.procedural import generate_sequence
from ..data.video import write_video
from ..errors import DataError
from ..files import atomic_write
from ..progress import tqdm
from ..segmentation import ObjectPrompt, SavedAs, track_file
from ..spelling import counted
from ..workflow.models import load_runnable
from .processes import alone, peak_bytes

#: Memory is noted every so many frames.
STEP = 100
FPS = 30
MASKS: tuple[SavedAs, ...] = ("masks",)


@dataclass(frozen=True)
class LongVideo:
    """What tracking one object through a long video took.

    Attributes:
        video: The clip.
        width: Of its frames in pixels.
        height: Of its frames in pixels.
        frames: How many there were.
        seconds: From the first frame to the last.
        loaded_mb: Memory of the process with the model loaded, before tracking, in megabytes.
        peak_mb: The most that it ever had.
        memory_mb: Every :data:`STEP` frames: the number of the frame, and the memory then.
        latency_ms: "median", "p95", "p99" and "max": from one frame to the next, in milliseconds, with decoding and
            writing; the first frame is left out.
    """

    video: str
    width: int
    height: int
    frames: int
    seconds: float
    loaded_mb: float
    peak_mb: float
    memory_mb: list[tuple[int, float]]
    latency_ms: dict[str, float] = field(default_factory=dict)


def draw_clip(path: Path, frames: int, size: tuple[int, int] = (1920, 1080), *, progress: bool = False) -> None:
    """Write a video of moving shapes, there and back, as long as is wanted.

    Args:
        path: The ``.mp4`` file.
        frames: How many.
        size: Width and height in pixels.
        progress: Show a bar.

    Raises:
        QSAM2Error: It cannot be written.

    Example:
        >>> draw_clip(Path("clip.mp4"), 300, (640, 360))  # doctest: +SKIP
    """
    scene = generate_sequence("test", 2, num_frames=20)
    pictures = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in scene.frames]
    endless = cycle(chain(pictures, reversed(pictures)))
    drawn = tqdm(islice(endless, frames), total=frames, desc="drawing the clip", unit="frame", disable=not progress)
    write_video(path, drawn, FPS)


def measure_long_video(
    model: str | os.PathLike[str],
    video: Path,
    output: Path,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    target: str = "auto",
    save: Collection[SavedAs] = MASKS,
    progress: bool = True,
) -> LongVideo:
    """Track what is in the middle of the first frame, in a new process, and write ``long_video.json``.

    Args:
        model: As ``qsam2 track`` takes it.
        video: A video file or a folder of frames.
        output: The folder for the results and the masks.
        target: How a packed file runs.
        save: What is written for each frame.
        progress: Show a bar.

    Returns:
        The measurement.

    Raises:
        QSAM2Error: The model or the video cannot be read, a file cannot be written, or the process was killed.

    Example:
        >>> measure_long_video("w4a8.safetensors", Path("clip.mp4"), Path("outputs")).peak_mb  # doctest: +SKIP
    """
    found = alone(partial(_measure, str(model), checkpoint, video, output, target, tuple(save), progress))
    with atomic_write(output / "long_video.json") as temporary:
        temporary.write_text(json.dumps(asdict(found), indent=1) + "\n")
    return found


class _Watched:
    """Frames that note when they were asked for, and the process's memory then."""

    def __init__(self, frames: ClipFrames) -> None:
        self._frames = frames
        self.times: list[float] = []
        self.memory: list[tuple[int, float]] = []

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        return self._frames[index]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for index, frame in enumerate(self._frames):
            self.times.append(time.perf_counter())
            if index % STEP == 0:
                self.memory.append((index, _resident_mb()))
            yield frame


def _measure(
    model: str,
    checkpoint: str | os.PathLike[str] | None,
    video: Path,
    output: Path,
    target: str,
    save: tuple[SavedAs, ...],
    progress: bool,
) -> LongVideo:
    clip = ClipFrames(video)
    if len(clip) < 3:
        raise DataError(f"{video} has {counted(len(clip), 'frame')}; from the third on there are latencies to measure")
    height, width = clip.first.shape[:2]
    frames = _Watched(clip)
    predictor = load_runnable(model, checkpoint, "cpu", target)
    loaded = _resident_mb()
    box = (width * 0.25, height * 0.25, width * 0.75, height * 0.75)
    with torch.inference_mode():
        track_file(predictor, video, {1: ObjectPrompt(box=box)}, output, save=save, frames=frames, progress=progress)
    gaps = np.diff(frames.times)[1:] * 1000  # the first has the prompt and the warming up
    quantiles = zip(("median", "p95", "p99", "max"), np.quantile(gaps, (0.5, 0.95, 0.99, 1)), strict=True)
    return LongVideo(
        str(video),
        width,
        height,
        len(frames.times),
        round(frames.times[-1] - frames.times[0], 1),
        loaded,
        round(peak_bytes() / 1e6, 1),
        [*frames.memory, (len(frames.times), _resident_mb())],
        {name: round(float(value), 1) for name, value in quantiles},
    )


def _resident_mb() -> float:
    """Memory of this process; where the system doesn't say, the most that it ever had."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return round(peak_bytes() / 1e6, 1)
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
