"""Videos with masks in the layout of DAVIS, read as :func:`~qsam2_ao.data.datasets.open_dataset` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .formats.base import Video
from .formats.davis import open_split


def read_davis(
    root: str | os.PathLike[str], names: Sequence[str] | None = None, *, resolution: str | None = None
) -> list[Video]:
    """Open the sequences of a DAVIS-style folder, whatever its splits.

    Args:
        root: The folder that holds ``JPEGImages`` and ``Annotations``.
        names: The sequences to open, in this order; all that have annotations by default.
        resolution: The folder between ``JPEGImages`` and the sequences; by default "480p" or the only one.

    Returns:
        The sequences. A frame may have no annotation; a sequence needs at least one.

    Raises:
        DataError: A folder or file is missing, an annotation has no frame, or there is nothing to read. What
            is wrong inside a file (damaged, colours instead of ids, another size) shows when the file is
            read, and names it.

    Example:
        >>> sequence = read_davis("DAVIS", ["bear"])[0]
        >>> sequence.frames[0].shape, sequence.object_ids
        ((480, 854, 3), (1,))
    """
    found = open_split(Path(root), None, resolution=resolution)
    return list(found if names is None else found.select(names))
