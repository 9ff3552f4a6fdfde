"""What is known of the objects on one frame, or in one picture: a mask for each, which may overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .masks import VOID


class LazyMasks(Mapping[int, NDArray[np.bool_]]):
    """The masks of objects by their ids, each decoded when it is asked for, since a picture may have hundreds.

    Args:
        object_ids: The ids.
        decode: From an id to its mask, bool ``[height, width]``.

    Example:
        >>> masks = LazyMasks([7], lambda object_id: np.ones((2, 2), bool))
        >>> masks[7].all(), list(masks)
        (np.True_, [7])
    """

    def __init__(self, object_ids: list[int], decode: Callable[[int], NDArray[np.bool_]]) -> None:
        self._ids, self._decode = dict.fromkeys(object_ids), decode

    def __getitem__(self, object_id: int) -> NDArray[np.bool_]:
        if object_id not in self._ids:
            raise KeyError(object_id)
        return self._decode(object_id)

    def __contains__(self, object_id: object) -> bool:
        return object_id in self._ids

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


@dataclass(frozen=True, eq=False)
class Annotation:
    """The objects on one frame.

    Attributes:
        size: Height and width in pixels.
        masks: Object id (0 or more) -> bool ``[height, width]``. Masks may overlap. An empty mask says that the object
            is not to be seen.
        void: bool ``[height, width]``: pixels of which nothing is known, for any object; ``None`` if there are none.
        complete: Whether an object without a mask here is known to be away. Where it is ``False`` (YouTube-VOS valid:
            later masks show new objects alone; SA-V val: a file for each object), nothing is known of such an object.
        source: The file, for errors.
    """

    size: tuple[int, int]
    masks: Mapping[int, NDArray[np.bool_]]
    void: NDArray[np.bool_] | None = None
    complete: bool = True
    source: str = "the annotation"

    @classmethod
    def from_ids(
        cls,
        ids: NDArray[np.integer],
        *,
        void: int | None = VOID,
        complete: bool = True,
        source: str = "the annotation",
    ) -> Annotation:
        """Out of a map of ids, whose objects do not overlap.

        Args:
            ids: ``[height, width]``; 0 is background.
            void: The value of pixels of which nothing is known; ``None`` if all values are ids.
            complete: See the class.
            source: See the class.

        Raises:
            DataError: It is no map of integers.

        Example:
            >>> annotation = Annotation.from_ids(np.array([[0, 1, 255]]))
            >>> list(annotation.masks), annotation.void.tolist()
            ([1], [[False, False, True]])
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise DataError(f"{source} must be integers [height, width], got {ids.dtype} {list(ids.shape)}")
        present = [int(i) for i in np.unique(ids) if i != 0]
        unknown = None
        if void is not None and void in present:
            present.remove(void)
            unknown = ids == void
        height, width = ids.shape
        return cls((height, width), LazyMasks(present, lambda i: ids == i), unknown, complete, source)

    def mask(self, object_id: int) -> NDArray[np.bool_] | None:
        """Where an object is.

        Args:
            object_id: The object.

        Returns:
            bool ``[height, width]``, all ``False`` while it is away; ``None`` where nothing is known of it.

        Example:
            >>> Annotation((1, 2), {1: np.array([[True, False]])}).mask(2).tolist()
            [[False, False]]
        """
        if object_id in self.masks:
            return self.masks[object_id]
        return np.zeros(self.size, bool) if self.complete else None

    def ids(self) -> NDArray[np.int64]:
        """As a map of ids ``[height, width]``, 255 for void; where objects overlap, the smaller id wins.

        That is the order in which SAM2's own tools write one picture for all objects.

        Raises:
            DataError: There is an object 0, which such a map cannot tell from the background.
        """
        if 0 in self.masks:
            raise DataError(f"{self.source} has an object 0, which is the background of a map of ids; keep its masks")
        found = np.zeros(self.size, np.int64)
        if self.void is not None:
            found[self.void] = VOID
        for object_id in sorted(self.masks, reverse=True):
            found[self.masks[object_id]] = object_id
        return found
