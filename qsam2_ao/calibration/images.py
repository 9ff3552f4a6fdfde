"""Calibration images: whatever the user has, as batches of normalised tensors of the model's size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..data.listing import find_photographs
from ..data.pictures import IMAGE_MEAN, IMAGE_STD, PICTURE_SUFFIXES, read_rgb, to_rgb
from ..errors import CalibrationError, DataError
from ..progress import tqdm

EXTENSIONS = PICTURE_SUFFIXES
CalibrationData: TypeAlias = "str | os.PathLike[str] | Image.Image | Iterable[object] | CalibrationImages"
"""What users give as calibration images; :class:`CalibrationImages` says which objects are images."""


class _Item(NamedTuple):
    """One image as it was given; it is looked at when it is read."""

    name: str
    picture: object
    normalized: bool


class CalibrationImages:
    """A fixed set of images that can be run through a model several times.

    Args:
        data: A folder of image files (searched recursively; masks that lie beside them, as in DAVIS, and hidden files
            are left out, see :func:`~qsam2_ao.data.listing.find_photographs`), or an iterable (a DataLoader too) of

            - paths of image files, PIL images, uint8 arrays [H, W, 3],
            - tensors [3, H, W] or [B, 3, H, W], uint8 or float with values in 0..1,
            - lists of such paths (as ``Path``), images, arrays or tensors, as of ``DataLoader(..., collate_fn=list)``,
            - tuples or lists whose first element, or mappings whose "image", is one of these,
            - SAM2's own training batches (``flat_img_batch``), which are normalised already.
        max_images: Number of images to use. Of a folder or a sequence with more, a random choice; an iterator
            or DataLoader is read until it has given that many.
        seed: Of the choice.

    Raises:
        CalibrationError: No image, or an unknown kind of data. A single image that cannot be used is named
            when it is read.

    Example:
        >>> for batch in CalibrationImages("photos/").batches(model):
        ...     features = model.forward_image(batch)
    """

    def __init__(self, data: CalibrationData, *, max_images: int = 50, seed: int = 0) -> None:
        if max_images < 1:
            raise CalibrationError(f"max_images must be positive, got {max_images}")
        chosen = _single_images(_choose(data, max_images, seed))
        self._items: list[_Item] = list(islice(chosen, max_images))
        if not self._items:
            raise CalibrationError("the calibration set is empty: give at least one image")

    def __len__(self) -> int:
        """Number of images."""
        return len(self._items)

    def content_hash(self) -> str:
        """What tells these images from others: a SHA-256 of their pixels.

        Raises:
            CalibrationError: An image cannot be read, is not RGB, or holds NaN; it is named.
        """
        found = hashlib.sha256()
        for item in self._items:
            image = _to_tensor(item.name, item.picture)
            found.update(f"{list(image.shape)} {item.normalized}".encode())
            found.update(image.cpu().numpy().tobytes())
        return found.hexdigest()

    def batches(
        self, model: nn.Module, batch_size: int = 1, progress: str | None = None, first: int = 0
    ) -> Iterator[Tensor]:
        """Yield float32 batches [B, 3, S, S] on the model's device, S its ``image_size``, normalised as SAM2
        does.

        Args:
            model: A SAM2 model.
            batch_size: Images per batch.
            progress: Title of a progress bar.
            first: Number of the first batch that is wanted.

        Raises:
            CalibrationError: An image cannot be read, is not RGB, or holds NaN; it is named.
        """
        size = getattr(model, "image_size", None)
        if not isinstance(size, int):
            raise CalibrationError(f"{type(model).__name__} has no image_size: calibration needs a SAM2 model")
        if batch_size < 1:
            raise CalibrationError(f"batch_size must be positive, got {batch_size}")
        device = next(model.parameters()).device
        begin = min(first * batch_size, len(self))
        with tqdm(total=len(self), initial=begin, desc=progress, unit="image", disable=progress is None) as bar:
            for start in range(begin, len(self), batch_size):
                items = self._items[start : start + batch_size]
                yield torch.stack([_normalized_tensor(item, size) for item in items]).to(device)
                bar.update(len(items))


def images_at_once(model: nn.Module) -> int:
    """How many images of a model's size make a pass of about a megapixel: 1 for the official models, at most 16."""
    size = int(getattr(model, "image_size", 1024))
    return max(1, min(16, (1 << 20) // size**2))


def load_images(data: CalibrationData, *, max_images: int = 50, seed: int = 0) -> CalibrationImages:
    """Calibration images from whatever the user has; a :class:`CalibrationImages` is returned as it is.

    Args:
        data: See :class:`CalibrationImages`.
        max_images: Number of images to use.
        seed: Of the choice.

    Raises:
        CalibrationError: No image, or an unknown kind of data.
    """
    if isinstance(data, CalibrationImages):
        return data
    return CalibrationImages(data, max_images=max_images, seed=seed)


def _normalized_tensor(item: _Item, size: int) -> Tensor:
    """Image as a normalised float32 tensor [3, size, size], as ``SAM2Transforms`` makes it."""
    name, normalized = item.name, item.normalized
    image = _to_tensor(name, item.picture)
    if not normalized and (float(image.min()) < 0 or float(image.max()) > 1):
        raise CalibrationError(
            f"{name}: float images must have values in 0..1 (they are normalised here), got "
            f"{float(image.min()):.3g}..{float(image.max()):.3g}"
        )
    if image.shape[-2:] != (size, size):
        image = F.interpolate(image[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    if normalized:
        return image
    return (image - image.new_tensor(IMAGE_MEAN)[:, None, None]) / image.new_tensor(IMAGE_STD)[:, None, None]


def _choose(data: CalibrationData, max_images: int, seed: int) -> Iterable[tuple[str, object]]:
    """Named items of ``data``: a seeded choice where its length is known and it can be indexed."""
    if isinstance(data, (str, os.PathLike)):
        folder = Path(data)
        if not folder.is_dir():
            raise CalibrationError(f"calibration folder {folder} does not exist or is not a folder")
        try:
            data = find_photographs(folder)
        except DataError as error:
            raise CalibrationError(f"calibration folder {folder}: {error}") from error
        if not data:
            raise CalibrationError(f"calibration folder {folder} holds no image ({', '.join(PICTURE_SUFFIXES)})")
    elif isinstance(data, (Image.Image, np.ndarray)) or (isinstance(data, torch.Tensor) and data.dim() == 3):
        data = [data]
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise CalibrationError(
            f"cannot calibrate on {type(data).__name__}: give a folder, a DataLoader or an iterable of images"
        )
    if isinstance(data, Sized) and hasattr(data, "__getitem__"):
        indices = np.arange(len(data))
        if len(data) > max_images:
            indices = np.sort(np.random.default_rng(seed).choice(len(data), max_images, replace=False))
        return ((f"calibration item {i}", data[int(i)]) for i in indices)
    return ((f"calibration item {i}", item) for i, item in enumerate(data))


def _single_images(items: Iterable[tuple[str, object]]) -> Iterator[_Item]:
    """Split batches."""
    for name, item in items:
        normalized = hasattr(item, "flat_img_batch")
        if normalized:
            item = getattr(item, "flat_img_batch")  # noqa: B009
        elif isinstance(item, Mapping):
            if "image" not in item:
                raise CalibrationError(f"{name}: a mapping without 'image': {sorted(map(str, item))}")
            item = item["image"]
        elif isinstance(item, list) and item and all(map(_is_picture, item)):
            yield from (_Item(f"{name}[{k}]", picture, normalized) for k, picture in enumerate(item))
            continue
        elif isinstance(item, (tuple, list)) and item:
            item = item[0]
        if isinstance(item, (str, os.PathLike)):
            name = f"calibration image {item}"
        if isinstance(item, torch.Tensor) and item.dim() == 4:
            for k, image in enumerate(item):
                yield _Item(f"{name}[{k}]", image, normalized)
        else:
            yield _Item(name, item, normalized)


def _is_picture(item: object) -> bool:
    if isinstance(item, (torch.Tensor, np.ndarray)):
        return item.ndim == 3 and item.shape[0 if isinstance(item, torch.Tensor) else 2] == 3
    return isinstance(item, (os.PathLike, Image.Image))  # a text may be a label


def _to_tensor(name: str, item: object) -> Tensor:
    """Image as float32 [3, H, W]; RGB in 0..1, or already normalised."""
    if isinstance(item, (str, os.PathLike, Image.Image)):
        try:
            item = to_rgb(item, "the picture") if isinstance(item, Image.Image) else read_rgb(item)
        except DataError as error:
            raise CalibrationError(f"{name}: not a readable image ({error})") from error
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3:
            raise CalibrationError(
                f"{name}: arrays must be uint8 [H, W, 3], got {item.dtype} of shape {list(item.shape)}"
            )
        item = torch.tensor(np.ascontiguousarray(item)).permute(2, 0, 1)  # a copy: some pictures are read-only
    if not isinstance(item, torch.Tensor):
        raise CalibrationError(f"{name}: cannot use a {type(item).__name__} as an image")
    if item.dim() != 3 or item.shape[0] != 3 or item.numel() == 0:
        raise CalibrationError(f"{name}: tensors must have shape [3, H, W], got {list(item.shape)}")
    if item.dtype == torch.uint8:
        return item.float() / 255
    if not item.is_floating_point():
        raise CalibrationError(f"{name}: tensors must be uint8 or floating point, got {item.dtype}")
    item = item.detach().float()
    if not bool(torch.isfinite(item).all()):
        raise CalibrationError(f"{name}: holds NaN or infinite values")
    return item
