"""Training batches out of short random clips: of data sets, or procedural ones.

What kind of batch a step has (clips, or their frames alone as images) is drawn from (seed, step). What is in a clip is
drawn from (seed, step, slot), its place in the whole step's batch: however the batch is dealt out to processes and
parts, it holds the same clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from training.utils.data_utils import BatchedVideoDatapoint

from ..data.clips import DatasetClips
from ..data.mixture import Mixture
from ..data.procedural import Sequence, generate_sequence
from ..errors import DataError
from .augmentation import augmented
from .batches import RawBatch, join_batches, split_frames, stack_sequences, stream_of

_ATTEMPTS = 50
#: Every so often the frames of a clip stand alone, so that training on clips does not unlearn prompted images.
_IMAGE_SHARE = 0.4


class Clips(Protocol):
    """Where clips are drawn from. It can be sent to the processes that read."""

    def longest(self, frames: int) -> int:
        """How many frames clips have that should have ``frames``."""

    def draw(self, frames: int, rng: np.random.Generator) -> Sequence:
        """A random clip of so many frames in the model's size; its objects are those that the first frame shows."""

    def name(self) -> str:
        """What it is, for errors."""


@dataclass(frozen=True)
class ProceduralClips:
    """Clips of procedural videos.

    Args:
        size: Side of the frames in pixels.
        seed: Of the videos.
    """

    size: int
    seed: int

    def longest(self, frames: int) -> int:
        """Any number."""
        return frames

    def draw(self, frames: int, rng: np.random.Generator) -> Sequence:
        """A clip, sometimes at several times its speed."""
        return generate_sequence(
            "train",
            int(rng.integers(2**31)),
            size=(self.size, self.size),
            num_frames=frames,
            stride=int(rng.choice([1, 1, 1, 2, 6])),
            seed=self.seed,
        )

    def name(self) -> str:
        """That they are procedural."""
        return "procedural videos"


@dataclass(frozen=True)
class Dealt:
    """A process's part of every step's batch.

    Attributes:
        clips: How many go through the model at once.
        accumulate: How many parts of a step come one after the other.
        rank: This process's number.
        ranks: How many there are.
    """

    clips: int = 1
    accumulate: int = 1
    rank: int = 0
    ranks: int = 1

    def slots(self, part: int) -> range:
        """The places in the step's batch that a part of this process has."""
        first = (part * self.ranks + self.rank) * self.clips
        return range(first, first + self.clips)


class ClipBatches(Dataset[RawBatch]):
    """The batches of every step of a training, by ``step * accumulate + part``.

    Args:
        source: Where clips come from.
        frames: Frames of a clip, at most.
        objects: Objects of a clip, at most, each visible on its first frame (on each frame that stands alone).
        seed: Another value is another stream of batches.
        dealt: This process's part of them.
        augment: Mirror, crop and recolour.
    """

    def __init__(
        self,
        source: Clips,
        *,
        frames: int = 4,
        objects: int = 3,
        seed: int = 0,
        dealt: Dealt | None = None,
        augment: bool = False,
    ) -> None:
        self.source, self.frames, self.objects, self.seed = source, source.longest(frames), objects, seed
        self.dealt, self.augment = dealt or Dealt(), augment

    def __getitem__(self, index: int) -> RawBatch:
        """A batch before normalisation.

        Raises:
            DataError: A file cannot be used, or no clip with a visible object is found.
        """
        step, part = divmod(index, self.dealt.accumulate)
        alone = bool(np.random.default_rng((self.seed, step)).random() < _IMAGE_SHARE)
        slots = self.dealt.slots(part)
        # numpy ignores zeros at the end of a seed: slot 0 would draw what decided about the batch's kind once more.
        clips = [self._draw(alone, np.random.default_rng((self.seed, step, 1 + slot))) for slot in slots]
        return join_batches(clips, slots[0] * (self.frames if alone else 1))

    def _draw(self, alone: bool, rng: np.random.Generator) -> RawBatch:
        for _ in range(_ATTEMPTS):
            clip = self.source.draw(self.frames, rng)
            if self.augment:
                frames, masks = augmented(clip.frames, clip.masks, rng)
                clip = Sequence(frames, masks, visible(masks), clip.name)
            raw = stack_sequences([clip], self.objects, rng)
            if alone:
                raw = split_frames(raw, self.objects, rng)
            if len(raw.objects):
                return raw
        raise DataError(
            f"no clip with a visible object in {_ATTEMPTS} tries; are the masks of {self.source.name()} empty?"
        )

    def stream(
        self, steps: int, *, device: torch.device | str = "cpu", workers: int = 0
    ) -> Callable[[int], Iterator[BatchedVideoDatapoint]]:
        """The batches as :func:`qsam2_ao.training.loop.train` takes them; see ``ProceduralBatches.stream``."""
        return stream_of(self, steps * self.dealt.accumulate, device=device, workers=workers)


def clip_batches(
    mixture: Mixture,
    size: int,
    steps: int,
    *,
    frames: int = 4,
    objects: int = 3,
    seed: int = 0,
    device: str = "cpu",
) -> Callable[[int], Iterator[BatchedVideoDatapoint]]:
    """Short random clips of one video each, resized to the model's input.

    Args:
        mixture: The videos.
        size: Side of the model's square input in pixels.
        steps: Where the stream ends.
        frames: At most so many frames of a clip.
        objects: At most so many objects, each visible on the clip's first frame.
        seed: A batch is a function of this and of its step alone.
        device: Where the tensors should be.

    Returns:
        From the first wanted step to the batches from there on, as ``train_qat`` takes them.

    Raises:
        DataError: While it runs: a file cannot be used, or no clip with a visible object is found.

    Example:
        >>> batches = clip_batches(Mixture.open("DAVIS"), model.image_size, 100)
        >>> result = train_qat(prepared, steps=1, batches=batches)
    """
    batches = ClipBatches(DatasetClips(mixture, size), frames=frames, objects=objects, seed=seed)
    return batches.stream(steps, device=device)


def visible(masks: NDArray[np.uint8]) -> tuple[int, ...]:
    """The ids of the objects that a clip's first frame shows."""
    return tuple(int(i) for i in np.unique(masks[0]) if i)
