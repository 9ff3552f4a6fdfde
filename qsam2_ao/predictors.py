"""SAM2's own predictors, whatever class the model is: on frames in memory, at any input size, in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from .compat import adapt_predictors
from .compat.image_predictor import eager_predictor
from .compat.rebind import rebound
from .data.pictures import IMAGE_MEAN, IMAGE_STD
from .data.types import Indexed
from .errors import DataError, QSAM2Error
from .models.config import Model, as_class
from .reporting.notes import note
from .stage import stage_of
from .threads import attributes_set

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base
    from sam2.sam2_image_predictor import SAM2ImagePredictor
    from sam2.sam2_video_predictor import SAM2VideoPredictor

CANNOT_TRACK = (
    "the model cannot track: its weights came without the memory's (transformers' Sam2Model segments images only); "
    "quantize a Sam2VideoModel or an official checkpoint"
)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode inside the ``with`` block, and each back in its own mode afterwards.

    Of threads that share modules, the first finds their mode and the last restores it.
    """
    with attributes_set((module, "training", False) for module in model.modules()):
        model.eval()  # which modules may have made more of
        yield


def as_video_predictor(model: nn.Module) -> SAM2VideoPredictor:
    """The model itself if it is a ``SAM2VideoPredictor``, otherwise one that shares all of its parts.

    Args:
        model: A model of the SAM2Base family, also a prepared or a quantized one.

    Returns:
        The predictor, with the model's own settings.

    Raises:
        GraphTraceError: It is not a SAM2 model.
        QSAM2Error: It was cast to float16 or bfloat16.

    Example:
        >>> as_video_predictor(model).image_size
        96
    """
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    check_float32(model)
    return model if isinstance(model, SAM2VideoPredictor) else as_class(model, SAM2VideoPredictor)


def check_float32(model: nn.Module) -> None:
    """Refuse a model that was cast to another dtype, which SAM2's predictors cannot run without autocast.

    Args:
        model: A model of the SAM2Base family.

    Raises:
        QSAM2Error: Its prompt encoder, which nothing quantizes, is not in float32.
    """
    parameter = next((p for name, p in model.named_parameters() if name.startswith("sam_prompt_encoder.")), None)
    if parameter is None or parameter.dtype == torch.float32 or torch.is_autocast_enabled(parameter.device.type):
        return
    raise QSAM2Error(
        f"the model was cast to {parameter.dtype}, and SAM2's predictors give it pictures in float32: call "
        f'model.float(), and run it inside torch.autocast("{parameter.device.type}", torch.bfloat16) for speed'
    )


def preprocess(frames: Indexed[NDArray[np.uint8]], size: int) -> Tensor:
    """Frames as SAM2's own loader hands them to the network.

    Args:
        frames: uint8 ``[height, width, 3]`` each, RGB, all of one size.
        size: Side of the network's square input in pixels.

    Returns:
        float32 ``[frames, 3, size, size]``, normalised.

    Raises:
        DataError: There are no frames, or one of them has another type or size.

    Example:
        >>> preprocess(np.zeros((2, 48, 64, 3), np.uint8), 96).shape
        torch.Size([2, 3, 96, 96])
    """
    if len(frames) == 0:
        raise DataError("a video needs at least one frame")
    images = torch.empty(len(frames), 3, size, size)
    shape = np.shape(frames[0])
    for index, frame in enumerate(frames):
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
            raise DataError(
                f"frame {index} is {frame.dtype} {list(frame.shape)}; frames must be uint8 [height, width, 3] of "
                f"one size, the first was {list(shape)}"
            )
        resized = np.asarray(Image.fromarray(frame).resize((size, size)))
        images[index] = torch.from_numpy(resized / 255.0).permute(2, 0, 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return images.sub_(mean).div_(std)


def predictor_state(predictor: SAM2VideoPredictor, frames: Indexed[NDArray[np.uint8]]) -> dict[str, Any]:
    """What ``predictor.init_state`` returns for a folder of the same frames, without the folder.

    Args:
        predictor: The predictor.
        frames: uint8 ``[height, width, 3]`` each, RGB, all of one size.

    Returns:
        The inference state.

    Raises:
        DataError: As for :func:`preprocess`.
        QSAM2Error: The model's memory was never given weights.

    Example:
        >>> state = predictor_state(predictor, frames)
        >>> frame, ids, logits = predictor.add_new_mask(state, 0, obj_id=1, mask=mask)
    """
    images = preprocess(frames, predictor.image_size).to(predictor.device)
    height, width = np.shape(frames[0])[:2]
    return state_of_images(predictor, images, height, width)


def state_of_images(predictor: SAM2VideoPredictor, images: Indexed[Tensor], height: int, width: int) -> dict[str, Any]:
    """An inference state of frames that are preprocessed already, or when they are read.

    Args:
        predictor: The predictor.
        images: What :func:`preprocess` makes of each frame, ``[3, size, size]``.
        height: Of the frames before, in pixels.
        width: Likewise.

    Returns:
        The state. SAM2 computes the features of ``images[0]`` for it.

    Example:
        >>> images = preprocess(frames, predictor.image_size)  # doctest: +SKIP
        >>> state = state_of_images(predictor, images, 480, 854)  # doctest: +SKIP
    """
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    if stage_of(predictor).images_only:
        raise QSAM2Error(CANNOT_TRACK)

    # init_state knows paths only; it asks a function of its module for what is there.
    def in_memory(**_: Any) -> tuple[Indexed[Tensor], int, int]:
        return images, height, width

    with torch.inference_mode():
        return rebound(SAM2VideoPredictor.init_state, load_video_frames=in_memory)(predictor, "frames in memory")


def image_predictor(model: SAM2Base) -> SAM2ImagePredictor:
    """SAM2's image predictor on a model of any input size.

    Args:
        model: A model of the SAM2Base family, also a prepared or a quantized one.

    Returns:
        The predictor, which shares the model.

    Raises:
        QSAM2Error: The model was cast to float16 or bfloat16.

    Example:
        >>> predictor = image_predictor(model)
        >>> predictor.set_image(np.zeros((96, 96, 3), np.uint8))
    """
    adapt_predictors()
    check_float32(model)
    return eager_predictor(model)


def without_hole_filling(model: Model) -> Model:
    """Switch off the filling of small holes where the sam2 package lacks its CUDA extension, and say so.

    It would warn once, at length, and leave the holes anyway.
    """
    if getattr(model, "fill_hole_area", 0) > 0:
        try:
            from sam2 import _C  # noqa: F401
        except ImportError:
            note("small holes in masks are left: the sam2 package has no CUDA extension here")
            model.fill_hole_area = 0  # type: ignore[assignment]
    return model
