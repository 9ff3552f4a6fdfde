"""Peak memory of a model that is loaded and used, in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..benchmark.processes import alone, peak_bytes
from ..segmentation import StreamingPredictor, segment_image
from ..segmentation.schedule import ObjectPrompt
from ..segmentation.video import hear
from ..threads import one_thread_if_small
from .contenders import Contender

Prompted = tuple[list[NDArray[np.uint8]], dict[int, ObjectPrompt]]
FRAMES = 3
"""Of a clip, that are enough: memory attention has then seen a prompt and a tracked frame."""


def peak_memory(contender: Contender, device: str, used_on: Sequence[Prompted]) -> int:
    """The most memory that a process takes to load a model and to use it, Python and torch included.

    Args:
        contender: The model.
        device: Where it runs; on a GPU, what torch takes of the GPU's memory is measured.
        used_on: Pictures (one frame) and the first :data:`FRAMES` frames of clips, uint8 ``[height, width, 3]`` each,
            with the prompts on their first frames.

    Returns:
        Bytes.

    Raises:
        QSAM2Error: It cannot be loaded, memory ran out, or the system does not tell (Windows).
    """
    return alone(_peak, contender, device, used_on)


def _peak(contender: Contender, device: str, used_on: Sequence[Prompted]) -> int:
    model = contender.load(device)
    with one_thread_if_small(model):
        for frames, prompts in used_on:
            if len(frames) == 1:
                segment_image(model, Image.fromarray(frames[0]), prompts)
                continue
            stream = StreamingPredictor(model)
            hear(stream, stream.start(frames[0]), prompts)
            for frame in frames[1:]:
                stream.step(frame)
    return torch.cuda.max_memory_allocated(device) if torch.device(device).type == "cuda" else peak_bytes()
