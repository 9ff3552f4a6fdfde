"""Running a SAM2 model on unlabelled images so that every one of its regions sees data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from .images import CalibrationImages
from .kept import Pass

Model = TypeVar("Model", bound=nn.Module)


def is_float32(model: nn.Module) -> bool:
    """Whether every floating tensor of a model's state is float32."""
    return all(not t.is_floating_point() or t.dtype == torch.float32 for t in model.state_dict().values())


def in_float32(model: Model) -> Model:
    """The model itself if its weights are float32, else a copy with weights that are."""
    return model if is_float32(model) else copy.deepcopy(model).float()


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module's own mode is restored at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def exercise(
    model: nn.Module,
    images: CalibrationImages,
    *,
    batch_size: int = 1,
    seed: int = 0,
    boxes: Sequence[Tensor] | None = None,
    progress: bool | str | None = None,
    over: Pass | None = None,
) -> list[Tensor]:
    """Segment and track through SAM2's own methods, from random prompts.

    For each batch: a point prompt on the image, two further frames (the image shifted, then flipped) tracked
    with memory, a correcting click on the last, a box prompt around what the point segmented, and a mask prompt with
    one tracked frame. Image encoder, memory attention, memory encoder, mask decoder and object pointers all run.

    Args:
        model: A ``SAM2Base`` or a subclass, float, prepared or quantized; its mode is restored.
        images: Calibration images.
        batch_size: Images per forward pass; each image has one object.
        seed: Of the prompts.
        boxes: The box prompts of an earlier run over the same images, to prompt a changed model in the same way.
        progress: True or a title for a progress bar.
        over: Where an interrupted pass goes on, and who hears of each batch.

    Returns:
        The box prompts of each batch that was run: corners in pixels, [batch, 2, 2].

    Raises:
        CalibrationError: Unusable images.
    """
    generator = torch.Generator().manual_seed(seed)
    title = progress if isinstance(progress, str) else "calibrating" if progress else None
    over = over or Pass()
    if over.random is not None:
        generator.set_state(over.random)
    used: list[Tensor] = []
    with inference(model):
        for done, batch in enumerate(images.batches(model, batch_size, title, over.done), over.done):
            used.append(_run_batch(model, batch, generator, None if boxes is None else boxes[done]))
            over.after(done + 1, generator.get_state())
    return used


def _run_batch(model: Any, batch: Tensor, generator: torch.Generator, box: Tensor | None) -> Tensor:
    size, count = batch.shape[-1], batch.shape[0]
    shift = max(1, size // 32)
    frames = [_features(model, frame) for frame in (batch, batch.roll((shift, -shift), dims=(2, 3)), batch.flip(3))]

    clip: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    point = _point(count, size, generator).to(batch.device)
    segmented = _step(model, frames[0], 0, clip, points=(point, 1))
    clip["cond_frame_outputs"][0] = segmented
    for index in (1, 2):
        clip["non_cond_frame_outputs"][index] = _step(model, frames[index], index, clip)
    low_res = clip["non_cond_frame_outputs"][2]["pred_masks"].clamp(-32, 32)
    _step(model, frames[2], 2, clip, points=(_point(count, size, generator).to(batch.device), 1), logits=low_res)

    corner = torch.rand(count, 1, 2, generator=generator) * 0.4 * size
    extent = (0.2 + 0.3 * torch.rand(count, 1, 2, generator=generator)) * size
    if box is None:
        random = torch.cat([corner, corner + extent], dim=1).to(batch.device)
        box = _box_around(segmented["pred_masks_high_res"][:, 0] > 0, random)
    empty: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    _step(model, frames[0], 0, empty, points=(box, None))

    mask = _box_mask(box, size)
    empty["cond_frame_outputs"][0] = _step(model, frames[0], 0, empty, mask=mask)
    _step(model, frames[1], 1, empty)
    return box


def _features(model: Any, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[tuple[int, int]]]:
    _, features, positions, sizes = model._prepare_backbone_features(model.forward_image(images))
    return features, positions, sizes


def _step(
    model: Any,
    frame: tuple[list[Tensor], list[Tensor], list[tuple[int, int]]],
    index: int,
    clip: dict[str, dict[int, Any]],
    *,
    points: tuple[Tensor, int | None] | None = None,
    mask: Tensor | None = None,
    logits: Tensor | None = None,
) -> dict[str, Any]:
    """One ``track_step``; a label of None makes the two points the corners of a box."""
    prompt = None
    if points is not None:
        coordinates, label = points
        labels = [2, 3] if label is None else [label] * coordinates.shape[1]
        prompt = {
            "point_coords": coordinates,
            "point_labels": torch.tensor(labels, dtype=torch.int32, device=coordinates.device).expand(
                coordinates.shape[:2]
            ),
        }
    features, positions, sizes = frame
    # SAM2Train overrides track_step with another signature; the base class's is what inference runs.
    return SAM2Base.track_step(
        model,
        frame_idx=index,
        is_init_cond_frame=index == 0,
        current_vision_feats=features,
        current_vision_pos_embeds=positions,
        feat_sizes=sizes,
        point_inputs=prompt,
        mask_inputs=mask,
        output_dict=clip,
        num_frames=3,
        prev_sam_mask_logits=logits,
    )


def _point(count: int, size: int, generator: torch.Generator) -> Tensor:
    """One point per image, away from the border; pixels [count, 1, 2]."""
    return (0.1 + 0.8 * torch.rand(count, 1, 2, generator=generator)) * size


def _box_around(masks: Tensor, otherwise: Tensor) -> Tensor:
    """Corners of the smallest box around each mask [count, size, size]; those of ``otherwise`` for an empty one."""
    boxes = otherwise.clone()
    for box, mask in zip(boxes, masks, strict=True):
        y, x = torch.where(mask)
        if len(x):
            box.copy_(torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).view(2, 2))
    return boxes


def _box_mask(box: Tensor, size: int) -> Tensor:
    """Filled boxes, [count, 1, size, size]."""
    grid = torch.arange(size, device=box.device)
    low, high = box[:, 0, :, None], box[:, 1, :, None]
    inside = (grid >= low) & (grid < high)  # [count, (x, y), size]
    return (inside[:, 1, :, None] & inside[:, 0, None, :])[:, None].float()
