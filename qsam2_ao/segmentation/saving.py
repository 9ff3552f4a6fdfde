"""In which forms masks are written."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..data.coco import CocoFile
from ..errors import DataError
from ..files import check_output_folder
from ..reporting.label_maps import is_label_map

#: Palette PNGs of object ids; pictures or a video with the masks over them; COCO's annotations in one JSON file, with
#: run lengths or with polygons.
SavedAs = Literal["masks", "overlay", "rle", "polygons"]
_COCO: dict[SavedAs, str] = {"rle": "rle.json", "polygons": "polygons.json"}
#: What a picture has, behind its name.
_PICTURE_FILES: dict[SavedAs, str] = {"masks": "mask.png", "overlay": "overlay.png", **_COCO}
#: What a clip has beside its folder of masks.
CLIP_FILES: dict[SavedAs, str] = {"overlay": "overlay.mp4", **_COCO}
MASKS_AND_OVERLAY: tuple[SavedAs, ...] = ("masks", "overlay")


def check_saved(save: Collection[SavedAs]) -> None:
    """Check the names of forms.

    Args:
        save: What a caller wants written.

    Raises:
        DataError: A name is unknown, or there is none.
    """
    known = get_args(SavedAs)
    if not save or not {*save} <= {*known}:
        raise DataError(f"save must name some of {', '.join(known)}, got {', '.join(map(str, save)) or 'none'}")


def check_outputs(
    save: Collection[SavedAs], output: str | os.PathLike[str], picture: Path | None = None, read: Iterable[Path] = ()
) -> None:
    """Say before models are loaded and anything is computed that results cannot be written.

    Args:
        save: What is wanted.
        output: The folder.
        picture: The picture; None for a clip.
        read: Files of the user's that are read, such as masks.

    Raises:
        DataError: A name in ``save`` is unknown, or there is none, or a result would replace a file of ``read``, or a
            mask beside the picture that is the user's own, as data sets have them.
        QSAM2Error: A file cannot be written.

    Example:
        >>> check_outputs(["masks"], "outputs", Path("truck.jpg"))
    """
    check_saved(save)
    masks = None
    if picture is not None:
        names = [f"{picture.stem}_{_PICTURE_FILES[form]}" for form in save]
    else:
        names = [CLIP_FILES[form] for form in save if form in CLIP_FILES]
        masks = Path(output) / "masks" if "masks" in save else None
    check_kept(read, [Path(output) / name for name in names], masks)
    if picture is not None and "masks" in save:
        mask = Path(output) / f"{picture.stem}_{_PICTURE_FILES['masks']}"
        beside = mask.resolve().parent == picture.resolve().parent
        if beside and mask.exists() and not is_label_map(mask):
            raise DataError(f"{mask} was not written by this program, and would be replaced; name another output")
    check_output_folder(output, files=names)
    if masks is not None:
        check_output_folder(masks)


def check_kept(read: Iterable[Path], written: Collection[Path], folder: Path | None = None) -> None:
    """Refuse to replace what is read.

    Args:
        read: Files of the user's.
        written: Files that are written.
        folder: Of masks, in which anything may be replaced.

    Raises:
        DataError: One of ``read`` is among them.
    """
    replaced = {path.resolve() for path in written}
    masks = None if folder is None else folder.resolve()
    for path in read:
        place = path.resolve()
        if place in replaced or place.parent == masks:
            raise DataError(f"{path} is read, and the results would replace it; name another output")


class CocoFiles:
    """The JSON files that are wanted, each written picture by picture.

    Attributes:
        rle: That of run lengths, or None.
        polygons: That of polygons, or None.
    """

    def __init__(self, files: dict[SavedAs, CocoFile]) -> None:
        self._files = files
        self.rle, self.polygons = (files[form].path if form in files else None for form in ("rle", "polygons"))

    @property
    def paths(self) -> list[Path]:
        """Those of the files."""
        return [file.path for file in self._files.values()]

    def add(self, file_name: str, ids: NDArray[np.uint8], scores: Mapping[int, float] | None = None) -> None:
        """Add a picture's masks to each; see :meth:`qsam2_ao.data.coco.CocoFile.add`."""
        for file in self._files.values():
            file.add(file_name, ids, scores)


@contextmanager
def coco_files(save: Collection[SavedAs], output: Path, prefix: str = "") -> Iterator[CocoFiles]:
    """Open ``PREFIXrle.json`` and ``PREFIXpolygons.json`` where they are wanted.

    Args:
        save: What is wanted.
        output: The folder.
        prefix: What their names begin with.

    Yields:
        The files, which are whole when the block ends, and absent if it fails.

    Raises:
        QSAM2Error: A file cannot be written.

    Example:
        >>> with coco_files(["rle"], Path("outputs")) as files:  # doctest: +SKIP
        ...     files.add("00000.jpg", ids)
    """
    with ExitStack() as stack:
        opened: dict[SavedAs, CocoFile] = {}
        if "rle" in save:
            opened["rle"] = stack.enter_context(CocoFile(output / f"{prefix}rle.json", "rle"))
        if "polygons" in save:
            opened["polygons"] = stack.enter_context(CocoFile(output / f"{prefix}polygons.json", "polygons"))
        yield CocoFiles(opened)
