"""What was found in a video, as the files that benchmarks' servers and evaluators read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.types import VideoSequence
from ..reporting.label_maps import save_label_map


class MaskWriter:
    """Writes the masks of one video frame by frame, in the layout of SAM2's tools/vos_inference.py.

    For most data sets, a palette PNG of ids for each frame, ``VIDEO/00000.png``, as DAVIS, MOSE and YouTube-VOS have
    it; for those whose objects may overlap, such as SA-V, a PNG of zeros and ones for each object and frame,
    ``VIDEO/000/00000.png``.

    Args:
        root: The folder of all videos.
        sequence: The video. Where it says which frames its benchmark asks for, only those are written.

    Attributes:
        folder: That of the video.

    Example:
        >>> write = MaskWriter("results", sequence)
        >>> write(0, {1: sequence.masks[0] == 1})
        >>> sorted(path.name for path in write.folder.iterdir())
        ['00000.png']
    """

    def __init__(self, root: str | os.PathLike[str], sequence: VideoSequence) -> None:
        self.folder = Path(root) / sequence.name
        self._names = sequence.frame_names
        self._object_ids = sequence.object_ids
        self._overlapping = getattr(sequence, "overlapping", False)
        self._size = np.shape(sequence.frames[0])[:2]
        requested = getattr(sequence, "requested", None)
        self._requested = None if requested is None else frozenset(requested)

    def __call__(self, frame: int, masks: Mapping[int, NDArray[np.bool_]]) -> None:
        """Write a frame.

        Args:
            frame: Its index.
            masks: Object -> bool ``[height, width]``; an object without one is not there.

        Raises:
            QSAM2Error: A file cannot be written.
        """
        if self._requested is not None and frame not in self._requested:
            return
        name = f"{self._names[frame]}.png"
        if self._overlapping:
            for object_id in self._object_ids:
                mask = masks.get(object_id, np.zeros(self._size, bool))
                save_label_map(mask.astype(np.uint8), self.folder / f"{object_id:03d}" / name)
            return
        ids = np.zeros(self._size, np.uint8)
        for object_id in sorted(masks, reverse=True):
            ids[masks[object_id]] = object_id
        save_label_map(ids, self.folder / name)
