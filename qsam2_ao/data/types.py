"""What evaluation asks of a video with masks, wherever it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item", covariant=True)


@runtime_checkable
class VideoSequence(Protocol):
    """A video with instance masks: ``procedural.Sequence``, ``davis.DavisSequence`` or a user's own class.

    Attributes:
        name: What to call it in reports.
        object_ids: The ids to ask about, each from 1 to 254.
        frames: ``frames[t]`` is uint8 ``[height, width, 3]``, RGB; ``len(frames)`` is the number of frames.
        masks: ``masks[t]`` is uint8 ``[height, width]``: 0, an object's id, or 255 for void, pixels of which nothing
            is known (:mod:`qsam2_ao.data.masks`); or ``None`` where nothing is known of the frame.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def object_ids(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def frames(self) -> Indexed[Any]: ...  # noqa: D102

    @property
    def masks(self) -> Indexed[NDArray[np.uint8] | None]: ...  # noqa: D102


class Indexed(Protocol[Item]):
    """An array, a list or a lazy reader."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...

    def __iter__(self) -> Iterator[Item]: ...
