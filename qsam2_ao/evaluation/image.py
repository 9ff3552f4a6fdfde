"""Mean IoU of single images with box and click prompts, by SAM2's own image predictor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..data.annotation import Annotation
from ..data.types import VideoSequence
from ..errors import DataError
from ..predictors import eval_mode, image_predictor
from ..progress import tqdm
from ..threads import one_thread_if_small
from .miou import mask_iou
from .prompts import CLICKS, ImagePrompt, check_prompt
from .tally import check_ignore

if TYPE_CHECKING:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

_AT_ONCE = 16
"""Objects that share a pass: a click has three answers in float, each as large as the picture."""


@dataclass(frozen=True)
class ImageSample:
    """A picture with the masks of some of its objects.

    Attributes:
        image: uint8 ``[height, width, 3]``, RGB.
        masks: bool ``[objects, height, width]``, none of them empty.
        name: What to call it in errors.
        void: bool ``[height, width]``, pixels that do not count; None if all do.
        video: Name of the video that it is a frame of; None for a picture by itself.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    name: str = "image"
    void: NDArray[np.bool_] | None = None
    video: str | None = None

    def __post_init__(self) -> None:
        image, masks = np.asarray(self.image), np.asarray(self.masks)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"{self.name}: the image is {image.dtype} {list(image.shape)}, not uint8 [h, w, 3]")
        if masks.dtype != bool or masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
            raise DataError(
                f"{self.name}: the masks are {masks.dtype} {list(masks.shape)}, not bool [objects, "
                f"{image.shape[0]}, {image.shape[1]}] like the image"
            )
        if self.void is not None and (self.void.dtype != bool or self.void.shape != image.shape[:2]):
            raise DataError(
                f"{self.name}: void is {self.void.dtype} {list(self.void.shape)}, not bool [{image.shape[0]}, "
                f"{image.shape[1]}] like the image"
            )
        if not masks.any(axis=(1, 2)).all():
            raise DataError(f"{self.name}: a mask is empty, which cannot be prompted; leave the object out")


@dataclass(frozen=True)
class ImageScores:
    """Mean IoU of prompted objects.

    Attributes:
        prompt: "box", "click", "3-click" or "5-click".
        miou: Mean over all objects, in percent.
        num_images: How many images.
        num_objects: How many objects in them.
        ious: IoU of every object of every image, in percent.
    """

    prompt: str
    miou: float
    num_images: int
    num_objects: int
    ious: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the figures without those of single objects."""
        return {name: value for name, value in asdict(self).items() if name != "ious"}


def image_samples(
    sequences: Iterable[VideoSequence],
    *,
    per_sequence: int = 1,
    min_area: int = 16,
    seed: int = 0,
    ignore: int | None = None,
) -> list[ImageSample]:
    """Single frames of videos with all of their visible objects.

    Args:
        sequences: The videos.
        per_sequence: How many different frames of each, chosen at random among those that show an object.
        min_area: Objects with fewer visible pixels are left out.
        seed: Chooses the frames.
        ignore: An id that is no object: of its pixels nothing is asked.

    Returns:
        The samples; a sequence with too few frames gives those that it has.

    Example:
        >>> from qsam2_ao.data.procedural import generate_split
        >>> len(image_samples(generate_split("test", 2, num_frames=3), per_sequence=2))
        4
    """
    check_ignore(ignore)
    rng = np.random.default_rng(seed)
    samples = []
    for sequence in sequences:
        ids = [i for i in sequence.object_ids if i != ignore]
        # Masks of long videos are not all kept: those of the chosen frames are read again.
        usable = [t for t in sequence.annotated if _visible(sequence.annotation(t), ids, min_area)]
        for index in sorted(rng.permutation(len(usable))[:per_sequence]):
            t = usable[index]
            annotation = sequence.annotation(t)
            assert annotation is not None
            void = annotation.void
            if ignore is not None and ignore in annotation.masks:
                void = annotation.masks[ignore] if void is None else void | annotation.masks[ignore]
            masks = np.stack(_visible(annotation, ids, min_area))
            name = f"{sequence.name}, frame {t}"
            samples.append(ImageSample(np.asarray(sequence.frames[t]), masks, name, void, sequence.name))
    return samples


def _visible(annotation: Annotation | None, ids: Iterable[int], min_area: int) -> list[NDArray[np.bool_]]:
    """The masks of those objects that a frame shows."""
    known = {} if annotation is None else annotation.masks
    masks = [np.asarray(known[i]) for i in ids if i in known]
    return [mask for mask in masks if mask.sum() >= max(min_area, 1)]


def predict_objects(predictor: SAM2ImagePredictor, masks: NDArray[np.bool_], prompt: ImagePrompt) -> NDArray[np.bool_]:
    """Ask the predictor, whose image is set, for each object by a prompt derived from its true mask.

    A box is the mask's bounding box. A click is the mask's innermost point, and the one of three answers that
    the model thinks best is taken. With more clicks, each further one is the innermost point of the largest
    error, and the last answer is fed back, as in SAM2's own training and evaluation.

    Args:
        predictor: After ``set_image``.
        masks: bool ``[objects, height, width]``, the true masks.
        prompt: "box", "click", "3-click" or "5-click".

    Returns:
        bool ``[objects, height, width]``.

    Raises:
        DataError: The prompt's name is unknown.

    Example:
        >>> predictor = image_predictor(model)
        >>> predictor.set_image(image)
        >>> predict_objects(predictor, masks, "box").shape == masks.shape
        True
    """
    check_prompt(prompt, ImagePrompt)
    groups = range(0, len(masks), _AT_ONCE) if len(masks) else (0,)
    return np.concatenate([_predict_group(predictor, masks[first : first + _AT_ONCE], prompt) for first in groups])


def _predict_group(predictor: SAM2ImagePredictor, masks: NDArray[np.bool_], prompt: ImagePrompt) -> NDArray[np.bool_]:
    from sam2.modeling.sam2_utils import get_next_point
    from sam2.utils.misc import mask_to_box

    truth = torch.from_numpy(masks)[:, None]
    count = len(masks)
    if prompt == "box":
        boxes = mask_to_box(truth)[:, 0].numpy()
        answers, _, _ = predictor.predict(box=boxes, multimask_output=False)
        return answers.reshape(count, *masks.shape[1:]).astype(bool)
    points, labels = get_next_point(truth, None, "center")
    answers, qualities, logits = predictor.predict(points.numpy(), labels.numpy(), multimask_output=True)
    best = qualities.reshape(count, -1).argmax(axis=1)
    rows = np.arange(count)
    predicted = answers.reshape(count, -1, *masks.shape[1:])[rows, best].astype(bool)
    low_resolution = logits.reshape(count, -1, *logits.shape[-2:])[rows, best]
    for _ in range(CLICKS[prompt] - 1):
        point, label = get_next_point(truth, torch.from_numpy(predicted)[:, None], "center")
        points, labels = torch.cat([points, point], dim=1), torch.cat([labels, label], dim=1)
        answers, _, logits = predictor.predict(
            points.numpy(), labels.numpy(), mask_input=low_resolution[:, None], multimask_output=False
        )
        predicted = answers.reshape(count, *masks.shape[1:]).astype(bool)
        low_resolution = logits.reshape(count, *logits.shape[-2:])
    return predicted


def evaluate_image(
    model: nn.Module, samples: Iterable[ImageSample], *, prompt: ImagePrompt = "box", progress: bool = False
) -> ImageScores:
    """Mean IoU of SAM2's image predictor with prompts derived from the true masks.

    Args:
        model: A model of the SAM2Base family, float, prepared or quantized; its mode is restored afterwards.
        samples: The pictures with their masks; see :func:`image_samples`.
        prompt: "box", "click", "3-click" or "5-click", as :func:`predict_objects` describes.
        progress: Show a progress bar.

    Returns:
        The scores, the same on every run.

    Raises:
        DataError: There are no samples or no objects, or the prompt's name is unknown.

    Example:
        >>> miou = evaluate_image(model, samples, prompt="click", progress=False).miou
    """
    ious: list[NDArray[np.float64]] = []
    with eval_mode(model), one_thread_if_small(model):
        predictor = image_predictor(model)
        for sample in tqdm(samples, desc=f"images, {prompt}", unit="image", disable=not progress):
            predictor.set_image(sample.image)
            predicted = predict_objects(predictor, sample.masks, prompt)
            truth = sample.masks
            if sample.void is not None:
                predicted, truth = predicted & ~sample.void, truth & ~sample.void
            ious.append(mask_iou(predicted, truth))
    objects = sum(map(len, ious))
    if not objects:
        raise DataError("there are no samples with objects to evaluate")
    every = tuple(tuple((100 * image).tolist()) for image in ious)
    return ImageScores(prompt, 100 * float(np.concatenate(ious).mean()), len(ious), objects, every)
