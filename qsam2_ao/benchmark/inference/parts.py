"""The parts of SAM2 that are timed on their own, and the two predictors around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base

from ...compat.quiet import propagate_one, propagate_quietly
from ...predictors import as_video_predictor, predictor_state

FRAMES = 32
"""Of the video that is tracked."""
IMAGES = 4
"""Of a batch."""
MEMORIES = 7
"""That SAM2 attends to at most."""

_TOKENS_PER_POINTER = 4
Run = Callable[[], Any]


def image_encoder(model: SAM2Base, image: np.ndarray) -> Run:
    """Features of one image."""
    x = _input(model)
    return lambda: model.image_encoder(x)


def image_batch(model: SAM2Base, image: np.ndarray) -> Run:
    """Features of ``IMAGES`` images at once; the time is that of all."""
    x = _input(model, IMAGES)
    return lambda: model.image_encoder(x)


def memory_attention(frames: int) -> Callable[[SAM2Base, np.ndarray], Run]:
    """Attention of one frame to the memory and object pointers of ``frames`` others."""

    def prepare(model: SAM2Base, image: np.ndarray) -> Run:
        tokens, pointers = (model.image_size // 16) ** 2, frames * _TOKENS_PER_POINTER
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        memory, positions = normal(frames * tokens + pointers, 1, 64), normal(frames * tokens + pointers, 1, 64)
        now, here = normal(tokens, 1, 256), normal(tokens, 1, 256)
        return lambda: model.memory_attention(
            curr=[now], curr_pos=[here], memory=memory, memory_pos=positions, num_obj_ptr_tokens=pointers
        )

    return prepare


def decoder(model: SAM2Base, image: np.ndarray) -> Run:
    """Prompt encoder and mask decoder for one click, on features as the model's own encoder lays them out."""
    out = model.forward_image(_input(model))
    _, tokens, _, sizes = model._prepare_backbone_features(out)
    *fine, features = (x.permute(1, 2, 0).unflatten(2, size) for x, size in zip(tokens, sizes, strict=True))
    click = {
        "point_coords": torch.full((1, 1, 2), model.image_size / 2),
        "point_labels": torch.ones(1, 1, dtype=torch.int32),
    }
    return lambda: model._forward_sam_heads(features, point_inputs=click, high_res_features=fine, multimask_output=True)


def predict_image(model: SAM2Base, image: np.ndarray) -> Run:
    """``SAM2ImagePredictor``: ``set_image`` and ``predict`` for one click."""
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(model)
    click = np.array([[image.shape[1] / 2, image.shape[0] / 2]])

    def run() -> None:
        predictor.set_image(image)
        predictor.predict(click, np.array([1]))

    return run


def track_video(model: SAM2Base, image: np.ndarray) -> Run:
    """``SAM2VideoPredictor`` over ``FRAMES`` frames from one click; the time is that of all frames."""
    predictor = as_video_predictor(model)
    frames = np.stack([np.roll(image, 4 * t, axis=1) for t in range(FRAMES)])
    state = predictor_state(predictor, frames)

    def run() -> None:
        predictor.reset_state(state)
        state["cached_features"].clear()
        middle = [[image.shape[1] / 2, image.shape[0] / 2]]
        predictor.add_new_points_or_box(state, 0, obj_id=1, points=middle, labels=[1])
        for _ in propagate_quietly(predictor, state):
            pass

    return run


def track_frame(model: SAM2Base, image: np.ndarray) -> Run:
    """``SAM2VideoPredictor`` on one more frame, with as many memories as it attends to."""
    predictor = as_video_predictor(model)
    frames = np.stack([np.roll(image, 4 * t, axis=1) for t in range(MEMORIES + 1)])
    state = predictor_state(predictor, frames)
    middle = [[image.shape[1] / 2, image.shape[0] / 2]]
    predictor.add_new_points_or_box(state, 0, obj_id=1, points=middle, labels=[1])
    for _ in propagate_quietly(predictor, state):
        pass

    def run() -> None:
        state["cached_features"].clear()
        propagate_one(predictor, state, MEMORIES)

    return run


ENCODER, DECODER = "image encoder", "decoder, 1 click"
BATCH, ATTENTION = f"image encoder, {IMAGES} images", f"memory attention, {MEMORIES} frames"
IMAGE, VIDEO, FRAME = "set_image + predict", f"video, {FRAMES} frames", f"video, a frame with {MEMORIES} memories"
PARTS: dict[str, Callable[[SAM2Base, np.ndarray], Run]] = {
    ENCODER: image_encoder,
    "memory attention, 1 frame": memory_attention(1),
    "memory attention, 2 frames": memory_attention(2),
    "memory attention, 4 frames": memory_attention(4),
    ATTENTION: memory_attention(MEMORIES),
    DECODER: decoder,
    IMAGE: predict_image,
    VIDEO: track_video,
    BATCH: image_batch,
    FRAME: track_frame,
}
"""Name -> ``(model, image) -> what to time``."""


def _input(model: SAM2Base, images: int = 1) -> torch.Tensor:
    size = model.image_size
    return torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
