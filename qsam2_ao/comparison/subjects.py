"""What models are compared on: pictures and clips with prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..data.frames import ClipFrames
from ..data.listing import find_photographs
from ..data.photographs import PHOTOGRAPHS, Photograph
from ..data.pictures import read_rgb
from ..data.procedural import generate_sequence
from ..data.types import Indexed
from ..errors import DataError, MissingPackageError
from ..reporting.notes import note
from ..segmentation.prompts import read_prompt_file, schedule_of_items
from ..segmentation.schedule import ObjectPrompt, Schedule, check_schedule

GridPrompt = Literal["click", "box"]
Frames = Indexed[NDArray[np.uint8]]
LARGEST_GRID = 15
SHIPPED_PICTURES, SHIPPED_CLIPS, SHIPPED_FRAMES = 12, 2, 8
#: Beside :data:`~qsam2_ao.data.photographs.PHOTOGRAPHS`.
_FURTHER = (
    Photograph("chelsea", ((135, 85, 207, 149), (298, 107, 345, 166), (230, 222, 294, 267))),
    Photograph("coffee", ((172, 16, 405, 308), (323, 67, 426, 327), (77, 70, 480, 389))),
    Photograph("camera", ((0, 63, 330, 511), (230, 137, 412, 511))),
)


@dataclass(frozen=True)
class Subject:
    """A picture, or a clip, and what is asked on it.

    Attributes:
        name: What reports call it.
        kind: "picture" or "clip".
        open: Reads it: its frames, uint8 ``[height, width, 3]`` (one of a picture), and its prompts by frame.
    """

    name: str
    kind: Literal["picture", "clip"]
    open: Callable[[], tuple[Frames, Schedule]]


@dataclass(frozen=True)
class PromptPlan:
    """What is asked on the user's pictures and clips.

    Attributes:
        file: JSON: a list of prompts as for ``parse_schedule``, asked on each; or file name -> such a list.
        grid: Without a file, so many prompts along each side; on a clip's first frame half as many.
        kind: What those are: a "click" in the middle of each cell, or a "box" around it.
    """

    file: str | os.PathLike[str] | None = None
    grid: int = 4
    kind: GridPrompt = "click"

    def __post_init__(self) -> None:
        if self.kind not in get_args(GridPrompt):
            raise DataError(f"prompts of a grid must be one of {', '.join(get_args(GridPrompt))}, got {self.kind!r}")
        if not 1 <= self.grid <= LARGEST_GRID:
            raise DataError(f"the grid must have 1 to {LARGEST_GRID} prompts along each side, got {self.grid}")


def user_subjects(
    images: Sequence[str | os.PathLike[str]],
    videos: Sequence[str | os.PathLike[str]],
    plan: PromptPlan | None = None,
    *,
    max_frames: int | None = None,
) -> list[Subject]:
    """The user's pictures and clips.

    Args:
        images: Pictures, and folders of pictures.
        videos: Video files, and folders of frames.
        plan: What is asked on them; by default a grid of clicks. Prompts from a file are checked here.
        max_frames: Of each clip, only the first so many.

    Returns:
        One for each picture and clip, in the order given.

    Raises:
        DataError: A file cannot be read, or a prompt does not fit it.

    Example:
        >>> user_subjects(["photos"], ["clip.mp4"], PromptPlan(grid=2))  # doctest: +SKIP
    """
    plan = plan or PromptPlan()
    listed = [found for path in images for found in (find_photographs(path) if Path(path).is_dir() else [Path(path)])]
    lists = None if plan.file is None else read_prompt_file(plan.file)
    named = lists if isinstance(lists, Mapping) else None
    paths = [*listed, *map(Path, videos)]
    if named is not None and (unknown := sorted(set(named) - {name for path in paths for name in _names(path)})):
        raise DataError(f"{plan.file}: there is no picture or clip {unknown[0]!r}; write a file's name, or its path")

    def subject(path: Path, kind: Literal["picture", "clip"]) -> Subject:
        def opened() -> tuple[Frames, Schedule]:
            frames: Frames = [read_rgb(path)] if kind == "picture" else ClipFrames(path, max_frames)
            size = (frames[0].shape[1], frames[0].shape[0])
            if plan.file is None:
                grid = plan.grid if kind == "picture" else max(1, plan.grid // 2)
                return frames, {0: dict(grid_prompts(size, grid, plan.kind))}
            key = "" if named is None else next((name for name in _names(path) if name in named), None)
            if key is None:
                raise DataError(f"{plan.file} has no prompts for {path}: add {path.name!r}: [...], or leave it out")
            items = lists if named is None else named[key]
            schedule = schedule_of_items(items, size, len(frames), plan.file, key)
            check_schedule(schedule, size, len(frames))
            return frames, schedule

        return Subject(path.name, kind, opened)

    subjects = [subject(path, "picture") for path in listed] + [subject(Path(path), "clip") for path in videos]
    if not subjects:
        raise DataError("there is no picture and no clip to compare on")
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file")
    if plan.file is not None:
        for each in subjects:
            each.open()
    return _with_own_names(subjects, paths)


def _names(path: Path) -> tuple[str, str]:
    return str(path), path.name


def _with_own_names(subjects: Sequence[Subject], paths: Sequence[Path]) -> list[Subject]:
    """Called by their paths where two files have one name."""
    names = [subject.name for subject in subjects]
    return [
        subject if names.count(subject.name) == 1 else Subject(str(path), subject.kind, subject.open)
        for subject, path in zip(subjects, paths, strict=True)
    ]


def grid_prompts(size: tuple[int, int], grid: int, kind: GridPrompt = "click") -> dict[int, ObjectPrompt]:
    """A grid of clicks or boxes, each about an object of its own.

    Args:
        size: Width and height of the picture in pixels.
        grid: How many along each side.
        kind: A "click" in the middle of each cell, or a "box" that is the cell.

    Returns:
        Object id, from 1, row by row -> its prompt.

    Example:
        >>> grid_prompts((64, 32), 2)[4].points
        [(48.0, 24.0, 1)]
    """
    width, height = size[0] / grid, size[1] / grid
    found = {}
    for number in range(grid * grid):
        x, y = number % grid * width, number // grid * height
        if kind == "click":
            prompt = ObjectPrompt([(x + width / 2, y + height / 2, 1)])
        else:
            prompt = ObjectPrompt(box=(x, y, min(x + width, size[0]), min(y + height, size[1])))
        found[number + 1] = prompt
    return found


def shipped_subjects(side: int = 96) -> list[Subject]:
    """What needs no data of the user's: photographs, or procedural pictures without scikit-image; and procedural clips.

    Says which it took on standard error.

    Args:
        side: Side of the models' input in pixels, which procedural pictures and clips have.

    Returns:
        Pictures with a box or a click for each object, and clips with a box for each on the first frame.

    Example:
        >>> sorted({subject.kind for subject in shipped_subjects()})
        ['clip', 'picture']
    """
    size, scenes = (side, side), f"procedural scenes of {side} x {side} pixels"
    numbers = range(SHIPPED_PICTURES, SHIPPED_PICTURES + SHIPPED_CLIPS)
    clips = [_procedural(index, size, SHIPPED_FRAMES, "clip") for index in numbers]
    yours = "name yours with --image and --video"
    try:
        for photograph in (*PHOTOGRAPHS, *_FURTHER):
            photograph.read()
    except MissingPackageError:
        note(f'compared on {scenes}, and without photographs, which pip install "qsam2_ao[plots]" brings; {yours}')
        return [*(_procedural(index, size, 1, "picture") for index in range(SHIPPED_PICTURES)), *clips]
    names = ", ".join(photograph.name for photograph in (*PHOTOGRAPHS, *_FURTHER))
    note(f"compared on scikit-image's photographs ({names}) and on clips of {scenes}; {yours}")
    return [*map(_photograph, (*PHOTOGRAPHS, *_FURTHER)), *clips]


def _procedural(index: int, size: tuple[int, int], frames: int, kind: Literal["picture", "clip"]) -> Subject:
    def opened() -> tuple[Frames, Schedule]:
        video = generate_sequence("test", index, size=size, num_frames=frames)
        prompts: dict[int, ObjectPrompt | None] = {}
        for number, prompt in video.prompts.items():
            x0, y0, x1, y1 = map(float, prompt.box)
            click = (float(prompt.points[0, 0]), float(prompt.points[0, 1]), 1)
            boxed = kind == "clip" or index % 2 == 0
            prompts[number] = ObjectPrompt(box=(x0, y0, x1, y1)) if boxed else ObjectPrompt([click])
        return list(video.frames), {0: prompts}

    return Subject(f"procedural {kind} {index}", kind, opened)


def _photograph(photograph: Photograph) -> Subject:
    boxes = {number: ObjectPrompt(box=box) for number, box in enumerate(photograph.boxes, 1)}
    return Subject(f"photograph {photograph.name}", "picture", lambda: ([photograph.read()], {0: dict(boxes)}))
