"""Clicks, boxes and masks of objects as people write them: in options of the command line, and in a JSON file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.masks import VOID
from ..errors import DataError
from .schedule import ObjectPrompt, Schedule, ScheduleBuilder, check_object_id

__all__ = ["ObjectPrompt", "parse_prompts", "parse_schedule", "read_prompt_file", "schedule_of_items"]

_EXAMPLES = {"--point": "320,240,1", "--box": "100,80,220,190"}
_KEYS = ("frame", "object", "points", "labels", "box", "mask", "remove")


def parse_prompts(
    size: tuple[int, int],
    points: Sequence[str] | None = None,
    boxes: Sequence[str] | None = None,
    masks: Sequence[str] | None = None,
    file: str | os.PathLike[str] | None = None,
) -> dict[int, ObjectPrompt]:
    """Collect the prompts of every object in a picture.

    Args:
        size: Width and height of the picture in pixels.
        points: ``[ID:]X,Y[,LABEL]``.
        boxes: ``[ID:]X0,Y0,X1,Y1``.
        masks: ``[ID:]FILE``.
        file: A JSON file, as for :func:`parse_schedule`.

    Returns:
        Object id -> its prompts, by id. Without an ID a prompt is about object 1; a mask file without one
        holds the ids itself, unless it is black and white.

    Raises:
        DataError: Nothing was given, a prompt cannot be read or lies outside of the picture, or an object has
            prompts that exclude each other.

    Example:
        >>> parse_prompts((640, 480), points=["320,240", "10,10,0"])[1].points
        [(320.0, 240.0, 1), (10.0, 10.0, 0)]
    """
    schedule = parse_schedule(size, points, boxes, masks, file=file, frames=1)
    for object_id, prompt in schedule[0].items():
        if prompt is None:
            raise DataError(f"{file}: object {object_id} cannot be removed from a picture; leave the item out")
    return {object_id: prompt for object_id, prompt in schedule[0].items() if prompt is not None}


def parse_schedule(
    size: tuple[int, int],
    points: Sequence[str] | None = None,
    boxes: Sequence[str] | None = None,
    masks: Sequence[str] | None = None,
    removals: Sequence[str] | None = None,
    file: str | os.PathLike[str] | None = None,
    *,
    frames: int | None = None,
) -> Schedule:
    """Collect the prompts of every object on every frame of a clip.

    Args:
        size: Width and height of the frames in pixels.
        points: ``[FRAME@][ID:]X,Y[,LABEL]``.
        boxes: ``[FRAME@][ID:]X0,Y0,X1,Y1``.
        masks: ``[FRAME@][ID:]FILE``.
        removals: ``FRAME@ID``: don't follow the object from that frame on.
        file: JSON: a list of items such as ``{"frame": 30, "object": 2, "points": [[320, 240]], "labels": [1]}``, with
            ``"box": [x0, y0, x1, y1]`` beside or instead of points, or ``"mask": "PATH"`` (from the file's folder), or
            ``"remove": true``.
        frames: How many frames the clip has, where that is known.

    Returns:
        Frame -> object id -> its prompts, or None where it is removed. Without a frame a prompt is about frame 0,
        without an id about object 1; a mask file without one holds the ids itself, unless it is black and white.

    Raises:
        DataError: Nothing was given; or a prompt, which the message names, cannot be read, lies outside of the picture
            or the clip, or excludes another.

    Example:
        >>> parse_schedule((640, 480), points=["320,240", "30@2:10,10,0"])[30][2].points
        [(10.0, 10.0, 0)]
    """
    builder = ScheduleBuilder(size, frames)
    for text in points or ():
        frame, object_id, values = _numbers("--point", text, (2, 3), "X,Y or X,Y,LABEL")
        label = values[2] if len(values) == 3 else 1
        if label not in (0, 1):
            raise DataError(f"--point {text}: the label must be 1 (inside) or 0 (outside)")
        builder.add_points(f"--point {text}: ", frame, object_id, [values[:2]], [label])
    for text in boxes or ():
        frame, object_id, values = _numbers("--box", text, (4,), "X0,Y0,X1,Y1")
        if values[0] >= values[2] or values[1] >= values[3]:
            raise DataError(f"--box {text}: the corners must be left,top,right,bottom, and the box not empty")
        hint = f"; write --box ID:{text} for another object" if ":" not in text else ""
        builder.add_box(f"--box {text}: ", frame, object_id, values, hint)
    for text in masks or ():
        frame, mask_id, name = _split("--mask", text)
        builder.add_mask("--mask ", frame, mask_id, name)
    for text in removals or ():
        match = re.fullmatch(r"(\d{1,9})@(\d{1,9})", text)
        if match is None:
            raise DataError(f"--remove {text}: expected FRAME@ID, for example --remove 30@2")
        where = f"--remove {text}: "
        builder.remove(where, int(match[1]), check_object_id(int(match[2]), where))
    if file is not None:
        _read_items(read_prompt_file(file), Path(file), "", builder)
    schedule = builder.schedule()
    if not any(prompt is not None for found in schedule.values() for prompt in found.values()):
        raise DataError("say what to look for: give --point, --box or a mask, or --prompts FILE")
    return schedule


def _split(option: str, text: str) -> tuple[int, int | None, str]:
    """Frame, object id and the rest; ``C:\\mask.png`` and ``a@b.png`` have neither frame nor id."""
    match = re.match(r"(?:(\d{1,9})@)?(?:(\d{1,9}):)?", text)
    assert match is not None
    frame, object_id = match[1], match[2]
    if object_id is not None and not 1 <= int(object_id) < VOID:
        raise DataError(f"{option} {text}: object ids are 1 to 254")
    return int(frame or 0), None if object_id is None else int(object_id), text[match.end() :]


def _numbers(option: str, text: str, counts: tuple[int, ...], form: str) -> tuple[int, int, list[float]]:
    frame, object_id, rest = _split(option, text)
    try:
        values = [float(value) for value in rest.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not all(map(math.isfinite, values)):
        example = f"{option} {_EXAMPLES[option]}"
        raise DataError(
            f"{option} {text}: expected {form} in pixels, for example {example}, or with a frame and an object id in "
            f"front, {option} 30@2:{_EXAMPLES[option]}"
        )
    return frame, object_id or 1, values


def read_prompt_file(path: str | os.PathLike[str]) -> object:
    """What a JSON file of prompts holds, not checked yet.

    Raises:
        DataError: It cannot be read, or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text("utf-8-sig"), parse_constant=_no_constant)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON file ({error}); wanted a list of prompts") from error


def masks_named_in(path: str | os.PathLike[str]) -> list[Path]:
    """The files of masks that a file of prompts names, in order, whether they are there or not.

    Args:
        path: The file, as for :func:`parse_schedule`.

    Raises:
        DataError: It cannot be read.
    """
    items = read_prompt_file(path)
    named = [item.get("mask") for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
    return [Path(path).parent / name for name in named if isinstance(name, str)]


def files_of_prompts(masks: Sequence[str] | None = None, file: str | os.PathLike[str] | None = None) -> list[Path]:
    """The files that prompts are read from, which results must not replace.

    Args:
        masks: ``[FRAME@][ID:]FILE``, as for :func:`parse_schedule`.
        file: The file of prompts.

    Raises:
        DataError: It cannot be read.

    Example:
        >>> files_of_prompts(["30@2:cat.png"])
        [PosixPath('cat.png')]
    """
    named = [] if file is None else [Path(file), *masks_named_in(file)]
    return [*(Path(_split("--mask", text)[2]) for text in masks or ()), *named]


def schedule_of_items(
    items: object, size: tuple[int, int], frames: int | None, path: str | os.PathLike[str], key: str = ""
) -> Schedule:
    """The prompts of one picture or clip, as a JSON file has them.

    Args:
        items: The list, as for :func:`parse_schedule`.
        size: Width and height in pixels.
        frames: How many frames there are, where that is known.
        path: The file, for errors and for the masks beside it.
        key: Where in the file the list is, for errors.

    Returns:
        Frame -> object id -> prompts.

    Raises:
        DataError: As :func:`parse_schedule`.

    Example:
        >>> schedule_of_items([{"points": [[320, 240]]}], (640, 480), 1, "prompts.json")[0][1].points
        [(320.0, 240.0, 1)]
    """
    builder = ScheduleBuilder(size, frames)
    _read_items(items, Path(path), key, builder)
    return builder.schedule()


def _read_items(items: object, path: Path, key: str, builder: ScheduleBuilder) -> None:
    if not isinstance(items, list) or not items:
        where = f"{path}, {key}" if key else str(path)
        raise DataError(f'{where}: wanted a list of prompts, [{{"frame": 0, "object": 1, "points": [[x, y]]}}, ...]')
    for number, item in enumerate(items, 1):
        _read_item(f"{path.name}, {key}{', ' if key else ''}item {number}: ", item, path.parent, builder)


def _read_item(where: str, item: object, folder: Path, builder: ScheduleBuilder) -> None:
    if not isinstance(item, Mapping):
        raise DataError(f'{where}wanted an object such as {{"frame": 0, "points": [[x, y]]}}, not {_shown(item)}')
    if unknown := sorted(set(item) - set(_KEYS)):
        raise DataError(f"{where}{unknown[0]!r} is unknown; an item has {', '.join(_KEYS)}")
    frame, object_id = item.get("frame", 0), item.get("object")
    if isinstance(frame, bool) or not isinstance(frame, int) or frame < 0:
        raise DataError(f"{where}frame is {_shown(frame)}; frames are counted from 0")
    if object_id is not None:
        check_object_id(object_id, f"{where}object ")
    if item.get("remove") is False:
        item = {key: value for key, value in item.items() if key != "remove"}
    kinds = [key for key in ("points", "box", "mask", "remove") if key in item]
    if not kinds:
        raise DataError(f"{where}there is no prompt: give points, box, mask or remove")
    if len(kinds) > 1 and kinds != ["points", "box"]:
        raise DataError(f"{where}{kinds[0]} and {kinds[-1]} exclude each other; make two items")
    if "labels" in item and "points" not in item:
        raise DataError(f"{where}labels has no points: give points with one point per label")
    if "remove" in item:
        if item["remove"] is not True or object_id is None:
            raise DataError(f'{where}wanted "remove": true and the object to remove')
        builder.remove(where, frame, object_id)
    if "mask" in item:
        if not isinstance(item["mask"], str) or not item["mask"] or "\0" in item["mask"]:
            raise DataError(f"{where}mask is {_shown(item['mask'])}; wanted the path of a mask PNG")
        builder.add_mask(where, frame, object_id, folder / item["mask"])
    if "box" in item:
        builder.add_box(where, frame, object_id or 1, item["box"])
    if "points" in item:
        builder.add_points(where, frame, object_id or 1, item["points"], item.get("labels"))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else f"{text[:36]} ..."
