"""Clicks, boxes and masks of objects, also as people write them on the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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

    def arrays(self) -> dict[str, NDArray[np.generic] | None]:
        """Points float32 ``[n, 2]``, labels int32 ``[n]`` and box float32 ``[4]``; None where absent."""
        import numpy as np

        return {
            "points": np.array([p[:2] for p in self.points], np.float32) if self.points else None,
            "labels": np.array([p[2] for p in self.points], np.int32) if self.points else None,
            "box": np.array(self.box, np.float32) if self.box else None,
        }


def parse_prompts(
    size: tuple[int, int],
    points: Sequence[str] | None = None,
    boxes: Sequence[str] | None = None,
    masks: Sequence[str] | None = None,
) -> dict[int, ObjectPrompt]:
    """Collect the prompts of every object.

    Args:
        size: Width and height of the picture in pixels.
        points: ``[ID:]X,Y[,LABEL]``.
        boxes: ``[ID:]X0,Y0,X1,Y1``.
        masks: ``[ID:]FILE``.

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
    prompts: dict[int, ObjectPrompt] = {}
    for text in points or ():
        object_id, values = _numbers("--point", text, (2, 3), "X,Y or X,Y,LABEL")
        label = values[2] if len(values) == 3 else 1
        if label not in (0, 1):
            raise DataError(f"--point {text}: the label must be 1 (inside) or 0 (outside)")
        _check_inside("--point", text, values[:2], size)
        prompts.setdefault(object_id, ObjectPrompt()).points.append((values[0], values[1], int(label)))
    for text in boxes or ():
        object_id, values = _numbers("--box", text, (4,), "X0,Y0,X1,Y1")
        if values[0] >= values[2] or values[1] >= values[3]:
            raise DataError(f"--box {text}: the corners must be left,top,right,bottom, and the box not empty")
        _check_inside("--box", text, values, size)
        prompt = prompts.setdefault(object_id, ObjectPrompt())
        if prompt.box is not None:
            raise DataError(f"object {object_id} has two boxes; write --box ID:{text} for another object")
        prompt.box = (values[0], values[1], values[2], values[3])
    for text in masks or ():
        for object_id, mask in _read_mask(text, size).items():
            prompt = prompts.setdefault(object_id, ObjectPrompt())
            if prompt.mask is not None or prompt.points or prompt.box:
                raise DataError(f"object {object_id} has a mask and another prompt; give a mask, or points and a box")
            prompt.mask = mask
    if not prompts:
        raise DataError("say what to look for: give --point, --box or a mask")
    return dict(sorted(prompts.items()))


def _split_id(option: str, text: str) -> tuple[int | None, str]:
    prefix, colon, rest = text.partition(":")
    if not colon or not prefix.isdigit():  # also C:\mask.png
        return None, text
    if not 1 <= int(prefix) <= 255:
        raise DataError(f"{option} {text}: object ids are 1 to 255")
    return int(prefix), rest


def _numbers(option: str, text: str, counts: tuple[int, ...], form: str) -> tuple[int, list[float]]:
    object_id, rest = _split_id(option, text)
    try:
        values = [float(value) for value in rest.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not all(map(math.isfinite, values)):
        raise DataError(f"{option} {text}: expected {form} in pixels, for example {option} {_EXAMPLES[option]}")
    return object_id or 1, values


_EXAMPLES = {"--point": "320,240,1", "--box": "100,80,220,190"}


def _check_inside(option: str, text: str, values: Sequence[float], size: tuple[int, int]) -> None:
    if any(not 0 <= value <= size[i % 2] for i, value in enumerate(values)):
        raise DataError(f"{option} {text} is outside of the picture, which is {size[0]} x {size[1]} pixels")


def _read_mask(text: str, size: tuple[int, int]) -> dict[int, NDArray[np.bool_]]:
    import numpy as np

    from ..data.masks import VOID, read_ids

    object_id, name = _split_id("--mask", text)
    ids = read_ids(name)
    if ids.shape != (size[1], size[0]):
        raise DataError(
            f"--mask {name} is {ids.shape[1]} x {ids.shape[0]} pixels but the picture is "
            f"{size[0]} x {size[1]}; resize the mask without smoothing"
        )
    found = [int(value) for value in np.unique(ids) if value not in (0, VOID)]
    if not found:
        raise DataError(f"--mask {name} is empty: every pixel is 0 (background) or {VOID} (void)")
    if object_id is not None:
        return {object_id: np.isin(ids, found)}
    return {value: ids == value for value in found}
