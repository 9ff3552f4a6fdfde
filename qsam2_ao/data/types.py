"""What evaluation and training ask of a video or a picture with masks, wherever it comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

from .annotation import Annotation

Item = TypeVar("Item", covariant=True)


@runtime_checkable
class VideoSequence(Protocol):
    """A video with a mask for each object: one of ``open_dataset``, a procedural one, or a user's own class.

    A picture is a video of one frame.

    Attributes:
        name: What to call it in reports.
        object_ids: The ids to ask about, each 0 or more.
        frames: ``frames[t]`` is uint8 ``[height, width, 3]``, RGB; ``len(frames)`` is the number of frames.
        frame_names: What each frame is called, as its file without the ending: ``"00000"``. Masks of it are saved under
            this name.
        annotated: The frames of which anything is known, ascending. Asking for it reads no mask.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def object_ids(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def frames(self) -> Indexed[Any]: ...  # noqa: D102

    @property
    def frame_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def annotated(self) -> tuple[int, ...]: ...  # noqa: D102

    def annotation(self, t: int) -> Annotation | None:
        """What is known of frame ``t``, of the frames' size; ``None`` for one that is not in ``annotated``."""
        ...


class Indexed(Protocol[Item]):
    """An array, a list or a lazy reader."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...

    def __iter__(self) -> Iterator[Item]: ...
