"""What the methods are calibrated, trained and measured on: procedural scenes, or real photographs and clips."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...data.datasets import open_dataset
from ...data.procedural import generate_sequence, generate_split
from ...data.real.library import Library
from ...data.types import VideoSequence
from ...errors import DataError
from ...evaluation import ImageSample, image_samples
from ...evaluation.image import ImagePrompt
from ...evaluation.polygons import read_polygons
from ...evaluation.protocol import Protocol
from ...spelling import counted
from ...training.batches import ProceduralBatches, RawBatch
from ...training.qat import QAT_STAGES
from ...training.real_batches import RealBatches, SizeStage

Split = Literal["val", "test"]
Pictures = Mapping[str, tuple[ImagePrompt, Sequence[ImageSample]]]
"""Metric -> the prompt that it asks with, and the pictures that it is the mean over."""

CALIBRATION_SEED, HELD_OUT_SEED = 1, 2
"""Of the scenes for calibration, and for judging a training; a training's own seeds are odd, these are doubled."""


class Steps(typing.Protocol):
    """The raw batch of every step."""

    def __getitem__(self, step: int, /) -> RawBatch: ...


class BenchmarkData(typing.Protocol):
    """One world of pictures, apart for training, validation and test.

    Attributes:
        name: As the results call it.
        model: Name of the embedded model that was trained on such pictures.
        protocol: How SAM2's video predictor is set up.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def model(self) -> str: ...  # noqa: D102

    @property
    def protocol(self) -> Protocol: ...  # noqa: D102

    def calibration_images(self, count: int, size: int) -> list[NDArray[np.uint8]]:
        """Pictures of the training split, uint8 ``[size, size, 3]`` each."""
        ...

    def training_batches(self, seed: int, steps: int, size: int) -> Steps:
        """The batches of a seed, which every method is trained on."""
        ...

    def held_out_batches(self, count: int, size: int) -> list[RawBatch]:
        """Batches of the training's kind that none is trained on."""
        ...

    def videos(self, split: Split, count: int, frames: int) -> Sequence[VideoSequence]:
        """Videos with masks, at most ``count``; ``frames`` is how many frames those have that are made."""
        ...

    def pictures(self, split: Split, count: int, frames: int) -> Pictures:
        """Single pictures with masks; the arguments are those of :meth:`videos`."""
        ...

    def describe(self, videos: int, frames: int) -> str:
        """What the test is, in a sentence for the report."""
        ...


@dataclass(frozen=True)
class ProceduralData:
    """The scenes of :mod:`qsam2_ao.data.procedural`."""

    name: str = "procedural"
    model: str = "embedded"
    protocol: Protocol = "deployed"

    def calibration_images(self, count: int, size: int) -> list[NDArray[np.uint8]]:
        """First frames of training videos."""
        return calibration_images(count, size)

    def training_batches(self, seed: int, steps: int, size: int) -> Steps:
        """Made once for all methods that a process trains."""
        return _procedural_batches(seed, steps, size)

    def held_out_batches(self, count: int, size: int) -> list[RawBatch]:
        """Clips and single frames of scenes that no seed trains on."""
        source = ProceduralBatches(QAT_STAGES, size=(size, size), seed=2 * HELD_OUT_SEED)
        return [source[step] for step in range(count)]

    def videos(self, split: Split, count: int, frames: int) -> Sequence[VideoSequence]:
        """The first videos of a split."""
        return _procedural_videos(split, count, frames)

    def pictures(self, split: Split, count: int, frames: int) -> Pictures:
        """One frame of each video, by box, one click and three."""
        samples = _procedural_samples(split, count, frames)
        return {"mIoU_box": ("box", samples), "mIoU_1click": ("click", samples), "mIoU_3click": ("3-click", samples)}

    def describe(self, videos: int, frames: int) -> str:
        """What the test is, in a sentence for the report."""
        return (
            f"{counted(videos, 'procedural test video')} of {counted(frames, 'frame')} with a first-frame mask prompt "
            "(J&F by vos-benchmark, SAM2's video predictor), and one frame of each with a box, one click and three "
            "clicks (mIoU, SAM2's image predictor)"
        )


PROCEDURAL = ProceduralData()


@dataclass(frozen=True)
class RealData:
    """Real photographs and clips in a folder, as :mod:`qsam2_ao.training.real` trains on them.

    ``train`` is a :class:`~qsam2_ao.data.real.library.Library`; ``validation`` holds ``coco128`` (YOLO polygons) and
    ``pumavos`` (a dataset of videos); ``test`` holds datasets of videos, one folder each. Of the photographs in
    ``coco128``, 48 choose learning rates, as they chose the model's weights; the test is on the others.

    Args:
        folder: The folder.

    Example:
        >>> RealData("realdata").model
        'embedded-256'
    """

    folder: str
    name: str = "real"
    model: str = "embedded-256"
    protocol: Protocol = "official"

    @property
    def _root(self) -> Path:
        return Path(self.folder)

    def check(self) -> None:
        """Open everything, so that what is missing is said before hours of work.

        Raises:
            DataError: A folder or file is missing or damaged; the message names it.
        """
        _library(self._root / "train")
        for split in ("val", "test"):
            self.videos(split, 1, 1)
            self.pictures(split, 1, 1)

    def calibration_images(self, count: int, size: int) -> list[NDArray[np.uint8]]:
        """First pictures of scenes as training draws them, with a seed of their own."""
        batches = self._batches(2 * CALIBRATION_SEED, size)
        return [batches[step].frames[0, 0] for step in range(count)]

    def training_batches(self, seed: int, steps: int, size: int) -> Steps:
        """Composed and photographed scenes, in the shares that the embedded model was trained with."""
        return self._batches(2 * seed + 1, size)

    def held_out_batches(self, count: int, size: int) -> list[RawBatch]:
        """The same photographs in scenes that no seed trains on."""
        batches = self._batches(2 * HELD_OUT_SEED, size)
        return [batches[step] for step in range(count)]

    def _batches(self, seed: int, size: int) -> RealBatches:
        return RealBatches(_library(self._root / "train"), (SizeStage(0, size),), seed=seed)

    def videos(self, split: Split, count: int, frames: int) -> Sequence[VideoSequence]:
        """Clips, whole ones: the validation's, or those of every dataset of the test."""
        return _clips(self._root, split)[:count]

    def pictures(self, split: Split, count: int, frames: int) -> Pictures:
        """Photographs by box, one click and three; of the test also frames of its clips by box."""
        samples = _photographs(self._root / "validation" / "coco128", split)
        found: dict[str, tuple[ImagePrompt, Sequence[ImageSample]]] = {
            "mIoU_box": ("box", samples),
            "mIoU_1click": ("click", samples),
            "mIoU_3click": ("3-click", samples),
        }
        if split == "test":
            found["mIoU_box_frames"] = ("box", _frames(self._root, count))
        return found

    def describe(self, videos: int, frames: int) -> str:
        """What the test is, in a sentence for the report."""
        clips = self.videos("test", videos, frames)
        photographs = _photographs(self._root / "validation" / "coco128", "test")
        objects = sum(len(sample.masks) for sample in photographs)
        frames = sum(len(clip.frames) for clip in clips)
        return (
            f"{counted(len(clips), 'clip')} of {', '.join(_test_sets(self._root))} ({counted(frames, 'frame')}) with a "
            "first-frame mask prompt (J&F by vos-benchmark, SAM2's video predictor, the official protocol), "
            f"{len(_frames(self._root, videos))} of their frames with a box, and "
            f"{counted(len(photographs), 'photograph')} of coco128 with {counted(objects, 'object')} by a box, one "
            "click and three clicks (mIoU, SAM2's image predictor)"
        )


@lru_cache(maxsize=2)
def calibration_images(count: int, size: int) -> list[NDArray[np.uint8]]:
    """First frames of procedural training videos, uint8 [size, size, 3] each."""
    return [generate_sequence("train", i, size=(size, size), num_frames=1).frames[0] for i in range(count)]


@lru_cache(maxsize=1)
def _procedural_batches(seed: int, steps: int, size: int) -> list[RawBatch]:
    source = ProceduralBatches(QAT_STAGES, size=(size, size), seed=2 * seed + 1)
    return [source[step] for step in range(steps)]


@lru_cache(maxsize=4)
def _procedural_videos(split: Split, count: int, frames: int) -> list[VideoSequence]:
    return list(generate_split(split, count, num_frames=frames))


@lru_cache(maxsize=4)
def _procedural_samples(split: Split, count: int, frames: int) -> list[ImageSample]:
    return image_samples(_procedural_videos(split, count, frames))


@lru_cache(maxsize=1)
def _library(folder: Path) -> Library:
    return Library.open(folder)


def _test_sets(root: Path) -> list[str]:
    folder = root / "test"
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if folder.is_dir() else []
    if not names:
        raise DataError(f"{folder}: there is no dataset to test on; put folders of clips with masks there")
    return names


@lru_cache(maxsize=2)
def _clips(root: Path, split: Split) -> list[VideoSequence]:
    folders = [root / "validation" / "pumavos"]
    if split == "test":
        folders = [root / "test" / name for name in _test_sets(root)]
    return [sequence for folder in folders for sequence in open_dataset(folder)]


@lru_cache(maxsize=2)
def _photographs(folder: Path, split: Split) -> list[ImageSample]:
    chosen = read_polygons(folder, count=48, per_image=4)
    if split == "val":
        return chosen
    names = {sample.name for sample in chosen}
    return [sample for sample in read_polygons(folder) if sample.name not in names]


@lru_cache(maxsize=1)
def _frames(root: Path, count: int) -> list[ImageSample]:
    return image_samples(_clips(root, "test")[:count], per_sequence=8)
