"""What can be clicked on before anything is uploaded."""

from __future__ import annotations

from ..data.photographs import PHOTOGRAPHS
from ..data.procedural import generate_sequence
from .clips import Clip, ClipStore

_CLIPS, _FRAMES = (0, 12), 24
SAMPLES = (*(f"clip {index}" for index in _CLIPS), "picture", *(f"photograph: {each.name}" for each in PHOTOGRAPHS))


def open_sample(store: ClipStore, number: int) -> Clip:
    """Open a sample.

    Args:
        store: Where.
        number: Position in :data:`SAMPLES`.

    Raises:
        MissingPackageError: It is a photograph, and scikit-image is not installed.
    """
    if number < len(_CLIPS):
        video = generate_sequence("test", _CLIPS[number], size=(192, 192), num_frames=_FRAMES)
        return store.open_frames(SAMPLES[number], list(video.frames))
    if number == len(_CLIPS):
        picture = generate_sequence("test", 5, size=(256, 256), num_frames=1).frames[0]
    else:
        picture = PHOTOGRAPHS[number - len(_CLIPS) - 1].read()
    return store.open_frames(SAMPLES[number], [picture])
