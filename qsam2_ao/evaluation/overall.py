"""Videos and images at once: the four figures that models are compared by."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..data.types import VideoSequence
from .image import evaluate_image, image_samples
from .video import evaluate_video

IMAGES_PER_VIDEO = 2


def evaluate_model(
    model: nn.Module,
    sequences: Sequence[VideoSequence],
    *,
    skip_first_and_last: bool = True,
    progress: bool = False,
) -> dict[str, float]:
    """J&F with first-frame masks, and mIoU with boxes on some frames of the same videos.

    Args:
        model: A model of the SAM2Base family.
        sequences: Videos with masks.
        skip_first_and_last: Leave the first and the last annotated frame out of J&F, as DAVIS does.
        progress: Show progress bars.

    Returns:
        "j", "f", "jf" and "miou" in percent.

    Raises:
        DataError: There are no sequences, or one cannot be used; the message names it.
        MissingPackageError: vos-benchmark is not installed.

    Example:
        >>> scores = evaluate_model(model, sequences)
        >>> 0 < scores["jf"] <= 100
        True
    """
    video = evaluate_video(model, sequences, skip_first_and_last=skip_first_and_last, progress=progress)
    samples = [
        sample
        for number, sequence in enumerate(sequences)
        for sample in image_samples([sequence], per_sequence=IMAGES_PER_VIDEO, seed=number)
    ]
    image = evaluate_image(model, samples, prompt="box", progress=progress)
    return {"j": video.j, "f": video.f, "jf": video.jf, "miou": image.miou}
