"""The four networks that an application runs, as modules with tensors alone for inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """``image [1, 3, S, S]`` -> features ``[1, C, S/16, S/16]`` and what the decoder reads at 1/4 and 1/8 of ``S``."""

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features, finest last."""
        fine, middle, coarse = self.model.forward_image(image)["backbone_fpn"]
        return coarse, middle, fine


class MaskDecoder(nn.Module):
    """Features and clicks -> three masks, their scores, and for video the best mask, the object's pointer and score.

    Click coordinates are in pixels of the ``S x S`` input, labels 1 (inside), 0 (outside), 2 and 3 (corners of a box),
    or -1 (none).
    """

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, features: Tensor, middle: Tensor, fine: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, ...]:
        """Mask logits at 1/4 of ``S``."""
        clicks = {"point_coords": point_coords, "point_labels": point_labels}
        projected: list[Tensor] = []
        hook = self.model.obj_ptr_proj.register_forward_hook(lambda module, inputs, out: projected.append(out))
        low, _, scores, best, best_large, pointer, appears = self.model._forward_sam_heads(
            features, point_inputs=clicks, high_res_features=[fine, middle], multimask_output=True
        )
        hook.remove()
        if self.model.pred_obj_scores and self.model.fixed_no_obj_ptr and not self.model.soft_no_obj_ptr:
            # OpenVINO 2026.4 computes SAM2's p * pointer + (1 - p) * none wrongly where it has to broadcast p.
            present = (appears > 0).float().repeat(1, projected[0].shape[1])
            pointer = present * projected[0] + (1 - present) * self.model.no_obj_ptr
        return low, scores, best, best_large, pointer, appears


class MemoryAttention(nn.Module):
    """Features of this frame, memories ``[M, 1, C']`` and pointer tokens ``[P, 1, C']`` -> conditioned features."""

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        self.attention = model.memory_attention
        self.side = model.image_size // 16

    def forward(
        self,
        features: Tensor,
        position: Tensor,
        memory: Tensor,
        memory_position: Tensor,
        pointers: Tensor,
        pointer_position: Tensor,
    ) -> Tensor:
        """``features`` and ``position`` ``[1, C, S/16, S/16]`` -> the same shape."""
        tokens = [x.flatten(2).permute(2, 0, 1) for x in (features, position)]
        out = self.attention(
            curr=[tokens[0]],
            curr_pos=[tokens[1]],
            memory=torch.cat([memory, pointers]),
            memory_pos=torch.cat([memory_position, pointer_position]),
            num_obj_ptr_tokens=pointers.shape[0],
        )
        return out.permute(1, 2, 0).unflatten(2, (self.side, self.side))


class MemoryEncoder(nn.Module):
    """Features of a frame and its mask's logits ``[1, 1, S, S]`` -> memory ``[1, C', S/16, S/16]``."""

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        self.encoder = model.memory_encoder
        self.scale, self.bias = model.sigmoid_scale_for_mem_enc, model.sigmoid_bias_for_mem_enc

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """As ``SAM2Base._encode_new_memory`` for a mask that the network predicted."""
        mask = mask.sigmoid() * self.scale + self.bias
        return self.encoder(features, mask, skip_mask_sigmoid=True)["vision_features"]


class RealRoPE(nn.Module):
    """``AxialRoPE`` for one grid in real arithmetic: other runtimes have no complex numbers."""

    cos: Tensor
    sin: Tensor

    def __init__(self, rope: Any, tokens: int) -> None:
        super().__init__()
        frequencies = rope._frequencies(tokens, torch.device("cpu"))
        self.register_buffer("cos", frequencies.real.float().contiguous())
        self.register_buffer("sin", frequencies.imag.float().contiguous())

    def forward(self, q: Tensor, k: Tensor, num_k_exclude_rope: Any = 0) -> tuple[Tensor, Tensor]:
        """Rotate ``q`` [B, heads, N, c] and all of ``k`` [B, heads, M, c] but its last tokens, N at a time."""
        if isinstance(num_k_exclude_rope, int) and num_k_exclude_rope == 0:
            return self._rotate(q), self._rotate(k)
        rotated = k.shape[2] - num_k_exclude_rope
        return self._rotate(q), torch.cat([self._rotate(k[:, :, :rotated]), k[:, :, rotated:]], dim=2)

    def _rotate(self, x: Tensor) -> Tensor:
        frames = x.reshape(x.shape[0], x.shape[1], -1, *self.cos.shape, 2)
        real, imaginary = frames.unbind(-1)
        turned = [real * self.cos - imaginary * self.sin, real * self.sin + imaginary * self.cos]
        return torch.stack(turned, dim=-1).reshape(x.shape)


@dataclass(frozen=True)
class ExportPart:
    """One network with example inputs.

    Attributes:
        name: Of the file.
        module: The network.
        inputs: Name -> example.
        outputs: Their names.
        dynamic: Input -> {dimension: name of its size}.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)


def export_parts(model: SAM2Base) -> list[ExportPart]:
    """The networks of a model whose layers other runtimes know (see :mod:`.qdq`), for one image and one object."""
    size, side = model.image_size, model.image_size // 16
    dim, memory_dim = model.hidden_dim, model.mem_dim
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    image = {"image": normal(1, 3, size, size)}
    fine = {"middle": normal(1, dim // 4, side * 2, side * 2), "fine": normal(1, dim // 8, side * 4, side * 4)}
    clicks = {
        "point_coords": torch.rand(1, 2, 2, generator=generator) * size,
        "point_labels": torch.ones(1, 2, dtype=torch.int32),
    }
    frames, pointers = 2, 8
    memory = {
        "features": normal(1, dim, side, side),
        "position": normal(1, dim, side, side),
        "memory": normal(frames * side * side, 1, memory_dim),
        "memory_position": normal(frames * side * side, 1, memory_dim),
        "pointers": normal(pointers, 1, memory_dim),
        "pointer_position": normal(pointers, 1, memory_dim),
    }
    return [
        ExportPart("image_encoder", ImageEncoder(model), image, ("features", "middle", "fine")),
        ExportPart(
            "mask_decoder",
            MaskDecoder(model),
            {"features": normal(1, dim, side, side), **fine, **clicks},
            ("masks", "scores", "best_mask", "best_mask_large", "pointer", "object_score"),
            {"point_coords": {1: "points"}, "point_labels": {1: "points"}},
        ),
        ExportPart(
            "memory_attention",
            MemoryAttention(model),
            memory,
            ("conditioned",),
            {
                "memory": {0: "memory_tokens"},
                "memory_position": {0: "memory_tokens"},
                "pointers": {0: "pointer_tokens"},
                "pointer_position": {0: "pointer_tokens"},
            },
        ),
        ExportPart(
            "memory_encoder",
            MemoryEncoder(model),
            {"features": normal(1, dim, side, side), "mask": normal(1, 1, size, size)},
            ("memory",),
        ),
    ]
