"""Training batches out of a DAVIS-style folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from training.utils.data_utils import BatchedVideoDatapoint

from ..data.davis import DavisSequence
from ..data.masks import VOID
from ..data.procedural import Sequence
from ..errors import DataError
from ..training.batches import RawBatch, split_frames, stack_sequences, to_datapoint

_ATTEMPTS = 50
#: Every so often the frames of a clip stand alone, so that training on clips does not unlearn prompted images.
_IMAGE_SHARE = 0.4


#: With fewer videos all are trained on, and judged by other clips of the same.
_FEWEST_TO_HOLD_OUT = 5


def hold_out(sequences: list[DavisSequence]) -> tuple[list[DavisSequence], list[DavisSequence]]:
    """Every tenth video, at least one, set aside to judge a training by.

    Args:
        sequences: The videos. Of fewer than five none can be spared: both lists then hold all of them.

    Returns:
        Those to train on, and those to judge by.

    Example:
        >>> trained, held = hold_out(read_davis("DAVIS"))
    """
    if len(sequences) < _FEWEST_TO_HOLD_OUT:
        return sequences, sequences
    return [s for i, s in enumerate(sequences) if i % 10 != 4], sequences[4::10]


def clip_batches(
    sequences: list[DavisSequence],
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
        sequences: The videos.
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
        >>> batches = clip_batches(read_davis("DAVIS"), model.image_size, 100)
        >>> result = train_qat(prepared, steps=1, batches=batches)
    """

    def start(first: int) -> Iterator[BatchedVideoDatapoint]:
        for step in range(first, steps):
            yield to_datapoint(_draw(sequences, size, frames, objects, np.random.default_rng((seed, step))), device)

    return start


def _draw(sequences: list[DavisSequence], size: int, frames: int, objects: int, rng: np.random.Generator) -> RawBatch:
    alone = rng.random() < _IMAGE_SHARE
    for _ in range(_ATTEMPTS):
        clip = _clip(sequences[int(rng.integers(len(sequences)))], size, frames, rng)
        raw = stack_sequences([clip], objects, rng)
        if alone:
            raw = split_frames(raw, objects, rng)
        if len(raw.objects):
            return raw
    raise DataError(
        f"no clip with a visible object in {_ATTEMPTS} tries; are the masks of {sequences[0].name} and the other "
        f"{len(sequences) - 1} sequences empty?"
    )


def _clip(sequence: DavisSequence, size: int, frames: int, rng: np.random.Generator) -> Sequence:
    """Some annotated frames in the order of time; its objects are those that the first one shows."""
    annotated = sequence.masks.present
    length = min(frames, len(annotated))
    first = int(rng.integers(len(annotated) - length + 1))
    times = annotated[first : first + length]
    pictures = np.stack([_resize(sequence.frames[t], size, Image.Resampling.BILINEAR) for t in times])
    masks = np.stack([_resize(sequence.masks[t], size, Image.Resampling.NEAREST) for t in times])
    masks[masks == VOID] = 0  # SAM2's losses have no pixels that do not count
    visible = tuple(int(i) for i in np.unique(masks[0]) if i)
    return Sequence(pictures, masks, visible, sequence.name)


def _resize(picture: NDArray[np.uint8] | None, size: int, how: Image.Resampling) -> NDArray[np.uint8]:
    assert picture is not None
    return np.asarray(Image.fromarray(picture).resize((size, size), how))
