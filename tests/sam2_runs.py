"""Running a SAM2 model through its own methods and keeping every tensor that comes out, for comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor


def images(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def error(actual: Tensor, expected: Tensor) -> float:
    """Root of the mean square error relative to the expected values'."""
    difference = (actual.float() - expected.float()).square().mean()
    return float((difference / expected.float().square().mean().clamp(min=1e-12)).sqrt())


def noisy(x: Tensor, share: float, seed: int = 0) -> Tensor:
    """Values that differ by normal noise of a share of each: what is computed of them differs by whole codes."""
    return x * (1 + share * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))


def photos(count: int = 2, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Pictures of noise, to calibrate on."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (80, 120, 3), np.uint8) for _ in range(count)]


def points(model: SAM2Base, batch: Tensor, count: int) -> dict[str, Tensor]:
    """The same clicks on each image."""
    coordinates = torch.full((len(batch), count, 2), model.image_size / 3, device=batch.device)
    labels = torch.ones(len(batch), count, dtype=torch.int32, device=batch.device)
    return {"point_coords": coordinates, "point_labels": labels}


def run_image(model: SAM2Base, batch: Tensor) -> list[Tensor]:
    """The image path: encoder features, then masks for a point on each image."""
    return _image(model, batch, model.forward_image(batch))


def _image(model: SAM2Base, batch: Tensor, out: dict[str, Any]) -> list[Tensor]:
    tensors = [*out["backbone_fpn"], *out["vision_pos_enc"]]
    _, features, _, sizes = model._prepare_backbone_features(out)
    maps = [f.permute(1, 2, 0).reshape(f.shape[1], -1, *s) for f, s in zip(features, sizes, strict=True)]
    heads = model._forward_sam_heads(
        maps[-1],
        point_inputs=points(model, batch, 1),
        high_res_features=maps[:-1] or None,
        multimask_output=True,
    )
    return [*tensors, *heads]


def run_video(model: SAM2Base, batch: Tensor, frames: int = 3) -> list[Tensor]:
    """The video path: a point on frame 0, then ``frames - 1`` frames tracked from memory and object pointers."""
    return _video(model, batch, model.forward_image(batch), frames)


def run_both(model: SAM2Base, batch: Tensor, frames: int = 3) -> list[Tensor]:
    """The image path and the video path, with the image encoder run once for both."""
    out = model.forward_image(batch)
    return _image(model, batch, out) + _video(model, batch, out, frames)


def _video(model: SAM2Base, batch: Tensor, out: dict[str, Any], frames: int) -> list[Tensor]:
    _, features, positions, sizes = model._prepare_backbone_features(out)
    memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    prompt = points(model, batch, 2)
    tensors: list[Tensor] = []
    for t in range(frames):
        out = SAM2Base.track_step(
            model, t, t == 0, features, positions, sizes, prompt if t == 0 else None, None, memory, frames
        )
        memory["cond_frame_outputs" if t == 0 else "non_cond_frame_outputs"][t] = out
        tensors += [out["pred_masks"], out["obj_ptr"], out["maskmem_features"], *out["maskmem_pos_enc"]]
    return tensors


def assert_identical(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(a, b), f"output {i} {tuple(a.shape)} differs by {(a - b).abs().max():.3g}"
