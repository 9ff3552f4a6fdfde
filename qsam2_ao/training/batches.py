"""Procedural videos as the batches that SAM2's own training classes read.

A batch is a function of (seed, step) alone, so that an interrupted training continues with exactly the
batches that it would have seen.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from training.utils.data_utils import BatchedVideoDatapoint, BatchedVideoMetaData

from ..data.decoding import max_pixels
from ..data.pictures import IMAGE_MEAN, IMAGE_STD
from ..data.procedural import Sequence, generate_sequence
from ..errors import DataError, QSAM2Error
from ..interrupts import INTERRUPTS


@dataclass(frozen=True)
class BatchKind:
    """One shape of batch.

    Attributes:
        videos: How many procedural videos it takes.
        frames: Frames per video.
        objects: At most this many objects per video, or per image.
        images: Whether every frame stands alone, as an image to be prompted, instead of forming a clip.
    """

    videos: int
    frames: int
    objects: int
    images: bool = False


@dataclass(frozen=True)
class Stage:
    """A part of a training: from step ``start`` on, kinds of batches are drawn with these weights."""

    start: int
    kinds: tuple[tuple[BatchKind, float], ...]


@dataclass
class RawBatch:
    """A batch before normalisation, small enough to send between processes.

    Attributes:
        frames: uint8 ``[frames, videos, height, width, 3]``.
        masks: uint8 ``[frames, videos, height, width]``, instance ids.
        objects: int64 ``[objects, 2]``: the video and the id in it.
        first: Number of the first video in the whole step's batch, of which this may be a part.
    """

    frames: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    objects: NDArray[np.int64]
    first: int = 0


def to_datapoint(raw: RawBatch, device: torch.device | str = "cpu") -> BatchedVideoDatapoint:
    """Normalise the frames and split the masks by object.

    Args:
        raw: Frames, instance masks and objects.
        device: Where the tensors should be.

    Returns:
        ``img_batch`` float32 ``[T, B, 3, H, W]``, ``masks`` bool ``[T, O, H, W]`` (all False while an object
        is away) and ``obj_to_frame_idx`` int32 ``[T, O, 2]``.

    Raises:
        DataError: There is no object.

    Example:
        >>> batch = to_datapoint(ProceduralBatches((Stage(0, ((BatchKind(2, 4, 2), 1.0),)),))[0])
    """
    if len(raw.objects) == 0:
        raise DataError("a batch without objects cannot be trained on; choose videos with a visible object")
    num_frames, _, height, width, _ = raw.frames.shape
    frames = torch.from_numpy(raw.frames).to(device).permute(0, 1, 4, 2, 3).float() / 255
    mean, std = (torch.tensor(value, device=device)[:, None, None] for value in (IMAGE_MEAN, IMAGE_STD))
    objects = torch.from_numpy(raw.objects).to(device)
    ids = torch.from_numpy(raw.masks).to(device)[:, objects[:, 0]]
    video = objects[:, 0].expand(num_frames, -1)
    frame = torch.arange(num_frames, device=device)[:, None].expand_as(video)
    identifiers = torch.stack([video + raw.first, objects[:, 1].expand(num_frames, -1), frame], dim=-1)
    sizes = torch.tensor([height, width], device=device).expand(num_frames, len(objects), 2)
    return BatchedVideoDatapoint(
        img_batch=(frames - mean) / std,
        obj_to_frame_idx=torch.stack([frame, video], dim=-1).int(),
        masks=ids == objects[:, 1, None, None].to(ids.dtype),
        metadata=BatchedVideoMetaData(unique_objects_identifier=identifiers, frame_orig_size=sizes),
        dict_key="all",
        batch_size=[num_frames],
    )


def stack_sequences(sequences: list[Sequence], objects: int, rng: np.random.Generator) -> RawBatch:
    """Clips of equal length and size side by side, with at most ``objects`` random objects of each."""
    chosen = [
        (video, identity)
        for video, sequence in enumerate(sequences)
        for identity in rng.permutation(sequence.object_ids)[:objects]
    ]
    return RawBatch(
        np.stack([sequence.frames for sequence in sequences], 1),
        np.stack([sequence.masks for sequence in sequences], 1),
        np.array(chosen, np.int64).reshape(-1, 2),
    )


def split_frames(raw: RawBatch, objects: int, rng: np.random.Generator) -> RawBatch:
    """Make every frame an image of its own, with at most ``objects`` of the objects seen well on it.

    Where no frame shows an object well, small ones are taken.
    """
    frames = raw.frames.reshape(1, -1, *raw.frames.shape[2:])
    masks = raw.masks.reshape(1, -1, *raw.masks.shape[2:])
    areas = [np.bincount(mask.ravel(), minlength=2) for mask in masks[0]]
    smallest = masks[0, 0].size // 200
    if all(area[1:].max() <= smallest for area in areas):
        smallest = 0
    chosen = [
        (image, identity)
        for image, area in enumerate(areas)
        for identity in 1 + rng.permutation(np.nonzero(area[1:] > smallest)[0])[:objects]
    ]
    return RawBatch(frames, masks, np.array(chosen, np.int64).reshape(-1, 2))


def join_batches(parts: list[RawBatch], first: int = 0) -> RawBatch:
    """Batches of clips of equal length and size side by side.

    Args:
        parts: The batches.
        first: Number of the first video in the whole step's batch.
    """
    before = np.cumsum([0, *(part.frames.shape[1] for part in parts[:-1])])
    objects = [part.objects + np.array([count, 0]) for part, count in zip(parts, before, strict=True)]
    return RawBatch(
        np.concatenate([part.frames for part in parts], 1),
        np.concatenate([part.masks for part in parts], 1),
        np.concatenate(objects),
        first,
    )


class ProceduralBatches(Dataset[RawBatch]):
    """The batch of every step of a training on the "train" split.

    Args:
        stages: What is drawn when, in order of their starts; the first starts at 0.
        size: Height and width of the frames in pixels.
        seed: Another value is another stream of batches.

    Example:
        >>> batches = ProceduralBatches((Stage(0, ((BatchKind(2, 4, 2), 1.0),)),), seed=1)
        >>> batches[7].frames.shape
        (4, 2, 96, 96, 3)
    """

    def __init__(self, stages: tuple[Stage, ...], *, size: tuple[int, int] = (96, 96), seed: int = 0) -> None:
        if not stages or stages[0].start != 0:
            raise DataError("the first stage of the batches must start at step 0")
        self.stages, self.size, self.seed = stages, size, seed

    def __getitem__(self, step: int) -> RawBatch:
        """The batch of a step, before normalisation."""
        rng = np.random.default_rng((self.seed, step))
        stage = [stage for stage in self.stages if stage.start <= step][-1]
        weights = np.array([weight for _, weight in stage.kinds])
        kind = stage.kinds[int(rng.choice(len(weights), p=weights / weights.sum()))][0]
        sequences = [
            generate_sequence(
                "train",
                int(rng.integers(2**31)),
                size=self.size,
                num_frames=kind.frames,
                # Distant frames make more varied images; clips are sometimes seen at double speed.
                stride=int(rng.integers(3, 12)) if kind.images else int(rng.choice([1, 1, 1, 2])),
                seed=self.seed,
            )
            for _ in range(kind.videos)
        ]
        raw = stack_sequences(sequences, kind.objects, rng)
        return split_frames(raw, kind.objects, rng) if kind.images else raw

    def stream(
        self, steps: int, *, device: torch.device | str = "cpu", workers: int = 0
    ) -> Callable[[int], Iterator[BatchedVideoDatapoint]]:
        """The batches as :func:`qsam2_ao.training.loop.train` takes them.

        Args:
            steps: Where the stream ends.
            device: Where the tensors should be.
            workers: Processes that generate ahead of the training; 0 generates in this one. They are not
                forked from this one, so that a script which asks for them needs the usual
                ``if __name__ == "__main__":``.

        Returns:
            A function from the first wanted step to an iterator over the batches from there on.
        """

        return stream_of(self, steps, device=device, workers=workers)


def stream_of(
    batches: Dataset[RawBatch], steps: int, *, device: torch.device | str, workers: int
) -> Callable[[int], Iterator[BatchedVideoDatapoint]]:
    """Batches by their step as :func:`qsam2_ao.training.loop.train` takes them; see ``ProceduralBatches.stream``."""

    def start(first: int) -> Iterator[BatchedVideoDatapoint]:
        loader: DataLoader[RawBatch | QSAM2Error] = DataLoader(
            _ErrorsAsItems(batches) if workers else batches,
            batch_size=None,
            sampler=range(first, steps),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            # A fork would copy the locks of whatever threads run here (CUDA, OpenVINO, ONNX Runtime).
            multiprocessing_context="spawn" if workers else None,
            collate_fn=_unchanged,
            worker_init_fn=partial(_begin_worker, max_pixels()),
        )
        for raw in loader:
            if isinstance(raw, QSAM2Error):
                raise raw
            yield to_datapoint(raw, device)

    return start


class _ErrorsAsItems(Dataset[RawBatch | QSAM2Error]):
    """What cannot be read comes out as its error, to which torch's workers would add their traceback."""

    def __init__(self, batches: Dataset[RawBatch]) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> RawBatch | QSAM2Error:
        try:
            return self._batches[step]
        except QSAM2Error as error:
            return error


def _begin_worker(pixels: int, worker: int) -> None:
    """Workers read as large pictures as this process does, and leave interruptions of their group to it."""
    os.environ["QSAM2_MAX_PIXELS"] = str(pixels)
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    # torch ends workers with this one, and takes any other end than a quiet one for a failure.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))


def _unchanged(raw: Any) -> Any:
    return raw
