"""The networks that an application runs, as modules with tensors alone for inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor, nn

from ..deploy.memories.merging import FewerMemories
from ..errors import UnsupportedLayerError


class ImageEncoder(nn.Module):
    """``image [1, 3, S, S]`` -> features ``[1, C, S/16, S/16]`` and what the decoder reads at 1/4 and 1/8 of ``S``."""

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features; the same for the decoder of a frame without memory, a still image for one; two finer levels."""
        fine, middle, features = self.model.forward_image(image)["backbone_fpn"]
        first = features
        if self.model.directly_add_no_mem_embed:
            first = features + self.model.no_mem_embed.reshape(1, -1, 1, 1)
        return features, first, middle, fine


class MaskDecoder(nn.Module):
    """Prompts and features -> masks at ``S/4``, the model's estimates of their IoU, the object's pointers and score.

    Click coordinates are in pixels of the ``S x S`` input, labels 1 (inside), 0 (outside), 2 and 3 (corners of a box),
    or -1 (none). One click may mean a part or the whole, so there are three masks for it, and one for all else. The
    mask ``[1, 1, S/4, S/4]`` is the logits of an earlier prediction; it counts where ``has_mask [1]`` is 1, not 0.
    """

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        features: Tensor,
        middle: Tensor,
        fine: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, ...]:
        """As ``SAM2Base._forward_sam_heads``, with and without ``multimask_output``; logits as the decoder gives them.

        Returns:
            masks ``[1, 3, S/4, S/4]`` and their scores ``[1, 3]``; mask ``[1, 1, S/4, S/4]`` and its score ``[1, 1]``;
            pointers ``[1, 4, C]`` of the mask and of the masks; object_score ``[1, 1]``, positive if it is in sight.
        """
        model, decoder = self.model, self.model.sam_mask_decoder
        encoder, has_mask = model.sam_prompt_encoder, has_mask.reshape(1, 1, 1, 1)
        sparse, dense = encoder(points=(point_coords, point_labels), boxes=None, masks=None)
        dense = has_mask * encoder._embed_masks(mask_input) + (1 - has_mask) * dense
        masks, scores, tokens, object_score = decoder.predict_masks(
            image_embeddings=features,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[fine, middle],
        )
        mask, score = masks[:, :1], scores[:, :1]
        if decoder.dynamic_multimask_via_stability:
            mask, score = decoder._dynamic_multimask_via_stability(masks, scores)
        if not decoder.use_multimask_token_for_obj_ptr:
            tokens = tokens[:, :1].expand_as(tokens)
        pointers = model.obj_ptr_proj(tokens)
        if model.pred_obj_scores:
            # Repeated, because OpenVINO 2026.4 broadcasts p * pointer + (1 - p) * none wrongly.
            p = object_score.sigmoid() if model.soft_no_obj_ptr else (object_score > 0).to(pointers.dtype)
            p = p[:, :, None].repeat(1, *pointers.shape[1:])
            pointers = (p * pointers if model.fixed_no_obj_ptr else pointers) + (1 - p) * model.no_obj_ptr
        return masks[:, 1:].float(), scores[:, 1:], mask.float(), score, pointers, object_score


class MemoryAttention(nn.Module):
    """Features of a frame, memories of others and the object's pointers there -> conditioned features.

    Args:
        model: The model.
        position: Encoding of the features' places, ``[1, C, S/16, S/16]``.
        memory_position: The same of a memory's places, ``[1, C', S/16, S/16]``.
    """

    def __init__(self, model: SAM2Base, position: Tensor, memory_position: Tensor) -> None:
        super().__init__()
        self.model = model
        self.position, self.memory_position = SeparablePosition(position), SeparablePosition(memory_position)

    def forward(self, features: Tensor, memory: Tensor, age: Tensor, pointers: Tensor, pointer_age: Tensor) -> Tensor:
        """As ``SAM2Base._prepare_memory_conditioned_features``.

        Args:
            features: ``[1, C, S/16, S/16]``.
            memory: Of ``F`` frames, ``[F, C', S/16, S/16]``.
            age: How many frames ago they were, int64 ``[F]``; 0 for a frame with prompts.
            pointers: Of ``P`` frames, ``[P, C]``.
            pointer_age: How many frames ago they were, over the most that the model keeps less one, float ``[P]``.

        Returns:
            ``[1, C, S/16, S/16]``.
        """
        model, dim = self.model, self.model.mem_dim
        when = model.maskmem_tpos_enc.reshape(-1, dim)[(age - 1) % model.num_maskmem]
        where = self.memory_position().flatten(2).permute(0, 2, 1) + when[:, None]
        pieces = pointers.shape[1] // dim
        pointer_tokens = pointers.reshape(-1, 1, dim)
        pointer_where = torch.zeros_like(pointers[:, :dim])
        if model.add_tpos_enc_to_obj_ptrs:
            channels = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else dim
            pointer_where = model.obj_ptr_tpos_proj(get_1d_sine_pe(pointer_age, dim=channels))
        pointer_where = pointer_where[:, None].repeat(1, pieces, 1).reshape(-1, 1, dim)
        out = model.memory_attention(
            curr=[features.flatten(2).permute(2, 0, 1)],
            curr_pos=[self.position().flatten(2).permute(2, 0, 1)],
            memory=torch.cat([memory.flatten(2).permute(0, 2, 1).reshape(-1, 1, dim), pointer_tokens]),
            memory_pos=torch.cat([where.reshape(-1, 1, dim), pointer_where]),
            num_obj_ptr_tokens=pointer_tokens.shape[0],
        )
        return out.permute(1, 2, 0).reshape(features.shape)


class MemoryEncoder(nn.Module):
    """Features of a frame, its mask's logits ``[1, 1, S, S]`` and the object's score -> memory ``[1, C', S/16, S/16]``.

    Of a mask that the user's clicks or box gave, the logits count only by their sign: hand in -100 and 100.
    """

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, mask: Tensor, object_score: Tensor) -> Tensor:
        """As ``SAM2Base._encode_new_memory``."""
        model = self.model
        mask = mask.sigmoid() * model.sigmoid_scale_for_mem_enc + model.sigmoid_bias_for_mem_enc
        memory = model.memory_encoder(features, mask, skip_mask_sigmoid=True)["vision_features"]
        if model.no_obj_embed_spatial is not None:
            hidden = (object_score <= 0).to(memory.dtype)[..., None, None]
            memory = memory + hidden * model.no_obj_embed_spatial[..., None, None]
        return memory


class MaskDownsampling(nn.Module):
    """A given mask ``[1, 1, S, S]`` of 0 and 1 -> what the decoder makes a pointer of, ``[1, 1, S/4, S/4]``."""

    def __init__(self, model: SAM2Base) -> None:
        super().__init__()
        self.model = model

    def forward(self, mask: Tensor) -> Tensor:
        """As ``SAM2Base._use_mask_as_output``."""
        return self.model.mask_downsample(mask)


class SeparablePosition(nn.Module):
    """SAM2's sine encoding of places for one grid, kept as what depends on the row and what on the column.

    Args:
        encoding: ``[1, C, H, W]``, the first half of whose channels tells the row and the second the column.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, encoding: Tensor) -> None:
        super().__init__()
        half, self.shape = encoding.shape[1] // 2, encoding.shape
        self.register_buffer("rows", encoding[:, :half, :, :1].float().contiguous())
        self.register_buffer("columns", encoding[:, half:, :1, :].float().contiguous())
        if not torch.equal(self(), encoding.float()):
            raise UnsupportedLayerError("cannot export this model: its position encoding is no sine encoding")

    def forward(self) -> Tensor:
        """The encoding, float32 ``[1, C, H, W]``."""
        _, _, height, width = self.shape
        return torch.cat([self.rows.expand(-1, -1, -1, width), self.columns.expand(-1, -1, height, -1)], dim=1)


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


#: Settings of SAM2's that change masks, with the values that :class:`~qsam2_ao.export.tracker.ExportedTracker` has.
_USUAL: dict[str, Any] = {
    "max_cond_frames_in_attn": -1,
    "non_overlap_masks": False,
    "non_overlap_masks_for_mem_enc": False,
    "clear_non_cond_mem_around_input": False,
}


def check_on_cpu(model: SAM2Base, why: str) -> None:
    """Refuse a model on another device.

    Args:
        model: The model.
        why: Why it has to be there, which the error begins with.

    Raises:
        UnsupportedLayerError: It is on another device.
    """
    if (device := next(model.parameters()).device.type) != "cpu":
        raise UnsupportedLayerError(f"{why}, and the model is on {device}: load it there")


def export_parts(model: SAM2Base) -> list[ExportPart]:
    """The networks of a model whose layers the runtime knows, for one image and one object.

    Raises:
        UnsupportedLayerError: The model's memory is not configured as in the official models, or a setting of SAM2's
            predictors, which the error names, is not; or memory attention chooses its frames.
    """
    if not (model.num_maskmem and model.use_obj_ptrs_in_encoder and model.directly_add_no_mem_embed):
        raise UnsupportedLayerError("cannot export this model: its memory is not configured as in the official models")
    for name, usual in _USUAL.items():
        if (value := getattr(model, name, usual)) != usual:
            raise UnsupportedLayerError(
                f"cannot export this model: its {name} is {value}, which the runner of exported files does not follow; "
                f"export it with {usual}"
            )
    if any(isinstance(hook, FewerMemories) for hook in model.memory_attention._forward_pre_hooks.values()):
        raise UnsupportedLayerError(
            "cannot export this model: memory attention chooses its frames (use_compact_memories(frames=...)), which "
            "exported files do not; leave that out"
        )
    size, side, dim = model.image_size, model.image_size // 16, model.hidden_dim
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    image, features = normal(1, 3, size, size), normal(1, dim, side, side)
    with torch.no_grad():
        position = model.forward_image(image)["vision_pos_enc"][-1]
        memory_position = model.memory_encoder(features, normal(1, 1, size, size))["vision_pos_enc"][-1]
    fine = {"middle": normal(1, dim // 4, side * 2, side * 2), "fine": normal(1, dim // 8, side * 4, side * 4)}
    prompts = {
        "point_coords": torch.rand(1, 2, 2, generator=generator) * size,
        "point_labels": torch.ones(1, 2, dtype=torch.int32),
        "mask_input": normal(1, 1, side * 4, side * 4),
        "has_mask": torch.ones(1),
    }
    frames, pointers = 3, 5
    memory = {
        "features": features,
        "memory": normal(frames, model.mem_dim, side, side),
        "age": torch.tensor([0, 2, 1]),
        "pointers": normal(pointers, dim),
        "pointer_age": torch.arange(pointers) / 15,
    }
    return [
        ExportPart("image_encoder", ImageEncoder(model), {"image": image}, ("features", "first", "middle", "fine")),
        ExportPart(
            "mask_decoder",
            MaskDecoder(model),
            {"features": features, **fine, **prompts},
            ("masks", "scores", "mask", "score", "pointers", "object_score"),
            {"point_coords": {1: "clicks"}, "point_labels": {1: "clicks"}},
        ),
        ExportPart(
            "memory_attention",
            MemoryAttention(model, position, memory_position),
            memory,
            ("conditioned",),
            {
                "memory": {0: "frames"},
                "age": {0: "frames"},
                "pointers": {0: "pointer_count"},
                "pointer_age": {0: "pointer_count"},
            },
        ),
        ExportPart(
            "memory_encoder",
            MemoryEncoder(model),
            {"features": features, "mask": normal(1, 1, size, size), "object_score": normal(1, 1)},
            ("memory",),
        ),
        ExportPart(
            "mask_downsampling",
            MaskDownsampling(model),
            {"mask": normal(1, 1, size, size).sign().clamp(min=0)},
            ("mask_input",),
        ),
    ]
