"""Real pictures, composed clips and procedural scenes as the batches of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from training.utils.data_utils import BatchedVideoDatapoint

from ..data.procedural import generate_sequence
from ..data.real.library import Library
from ..data.real.scenes import SceneKind, draw_scene
from ..errors import DataError
from .batches import RawBatch, split_frames, stack_sequences, stream_of


@dataclass(frozen=True)
class SizeStage:
    """From step ``start`` on, pictures are ``size`` pixels wide and high."""

    start: int
    size: int


@dataclass(frozen=True)
class Mix:
    """What a step sees, and how much of it.

    Attributes:
        shares: How often a step is of which kind; "procedural" is a clip of the procedural scenes.
        images: Pictures in a step of photographs or stills.
        clips: Clips in a step of pairs or clips.
        frames: Frames per clip.
        image_objects: At most this many objects per picture. They share the encoder's work, which is most of it.
        clip_objects: At most this many objects per clip.
    """

    shares: tuple[tuple[SceneKind | str, float], ...] = (
        ("photograph", 0.20),
        ("still", 0.32),
        ("clip", 0.28),
        ("pair", 0.06),
        ("procedural", 0.09),
        ("procedural stills", 0.05),
    )
    images: int = 8
    clips: int = 2
    frames: int = 4
    image_objects: int = 8
    clip_objects: int = 3


class RealBatches(Dataset[RawBatch]):
    """The batch of every step: a function of (seed, step) alone.

    Args:
        library: The real pictures.
        sizes: How large pictures are when, in the order of their starts; the first starts at 0.
        mix: The kinds of scenes.
        seed: Another value is another stream of batches.

    Raises:
        DataError: The sizes do not start at step 0.

    Example:
        >>> batches = RealBatches(Library.open("realdata/train"), (SizeStage(0, 128),))
    """

    def __init__(self, library: Library, sizes: tuple[SizeStage, ...], mix: Mix | None = None, seed: int = 0) -> None:
        if not sizes or sizes[0].start != 0:
            raise DataError("the first size must start at step 0")
        self.library, self.sizes, self.mix, self.seed = library, sizes, mix or Mix(), seed

    def size(self, step: int) -> int:
        """The pictures' side at a step."""
        return [stage.size for stage in self.sizes if stage.start <= step][-1]

    def __getitem__(self, step: int) -> RawBatch:
        """The batch of a step, before normalisation."""
        rng = np.random.default_rng((self.seed, step))
        mix, size = self.mix, self.size(step)
        weights = np.array([share for _, share in mix.shares])
        kind = mix.shares[int(rng.choice(len(weights), p=weights / weights.sum()))][0]
        if kind.startswith("procedural"):
            stills = kind == "procedural stills"
            sequences = [
                generate_sequence(
                    "train",
                    int(rng.integers(2**31)),
                    size=(size, size),
                    num_frames=mix.frames,
                    stride=int(rng.integers(3, 12)) if stills else int(rng.choice([1, 1, 1, 2])),
                    seed=self.seed,
                )
                for _ in range(mix.clips)
            ]
            raw = stack_sequences(sequences, mix.clip_objects, rng)
            return split_frames(raw, mix.image_objects, rng) if stills else raw
        scene: SceneKind = kind  # type: ignore[assignment]
        single = scene in ("photograph", "still")
        count = mix.images if single else mix.clips
        scenes = [draw_scene(scene, self.library, rng, size=size, frames=mix.frames) for _ in range(count)]
        return stack_sequences(scenes, mix.image_objects if single else mix.clip_objects, rng)

    def stream(
        self, steps: int, *, device: torch.device | str = "cpu", workers: int = 0
    ) -> Callable[[int], Iterator[BatchedVideoDatapoint]]:
        """The batches as :func:`qsam2_ao.training.loop.train` takes them, as ``ProceduralBatches.stream`` does."""
        return stream_of(self, steps, device=device, workers=workers)
