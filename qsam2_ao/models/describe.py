"""How each of SAM2's classes was constructed, read back from the attributes of an instance.

SAM2's modules don't keep their constructor arguments. One function per class recovers them; a value that is
itself a module stands for that module's own description.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import nn

#: Arguments of SAM2's models that change no tensor and may be chosen anew for a model that exists already.
INFERENCE_SETTINGS = (
    "binarize_mask_from_pts_for_mem_enc",
    "max_cond_frames_in_attn",
    "memory_temporal_stride_for_eval",
    "non_overlap_masks_for_mem_enc",
    "only_obj_ptrs_in_the_past_for_eval",
    "use_mask_input_as_output_without_sam",
)
_STABILITY = {
    "dynamic_multimask_via_stability": False,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class's constructor and of those that it passes its ``**kwargs`` on to."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base is nn.Module:
            break
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _same(module: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


def _multiplier(pairs: Iterable[tuple[int, int]]) -> float:
    """A factor m with ``int(before * m) == after`` for every pair, as Hiera's for widths and heads."""
    pairs = list(pairs)
    if not pairs:
        return 2.0
    low = max(after / before for before, after in pairs)
    if all(int(before * low) == after for before, after in pairs):
        return low
    return (low + min((after + 1) / before for before, after in pairs)) / 2


def _drop_probability(module: nn.Module) -> float:
    # The shortest decimal with this float32 value, as Hiera stores torch.linspace's elements.
    return float(str(np.float32(getattr(module, "drop_prob", 0.0))))


def _hiera(trunk: Any) -> dict[str, Any]:
    ends = list(trunk.stage_ends)
    changes = [(trunk.blocks[end], trunk.blocks[end + 1]) for end in ends[:-1]]
    return {
        "embed_dim": trunk.pos_embed.shape[1],
        "num_heads": trunk.blocks[0].attn.num_heads,
        "drop_path_rate": _drop_probability(trunk.blocks[-1].drop_path),
        "q_pool": len(trunk.q_pool_blocks),
        "stages": [end - start for start, end in zip([-1, *ends], ends, strict=False)],
        "dim_mul": _multiplier((before.dim_out, after.dim_out) for before, after in changes),
        "head_mul": _multiplier((before.attn.num_heads, after.attn.num_heads) for before, after in changes),
        **_same(
            trunk,
            "q_stride",
            "window_pos_embed_bkg_spatial_size",
            "window_spec",
            "global_att_blocks",
            "return_interm_layers",
        ),
    }


def _image_encoder(encoder: Any) -> dict[str, Any]:
    return _same(encoder, "trunk", "neck", "scalp")


def _fpn_neck(neck: Any) -> dict[str, Any]:
    conv = neck.convs[0].conv
    return {
        **_same(neck, "position_encoding", "d_model", "backbone_channel_list"),
        "kernel_size": conv.kernel_size[0],
        "stride": conv.stride[0],
        "padding": conv.padding[0],
        **_same(neck, "fpn_interp_model", "fuse_type", "fpn_top_down_levels"),
    }


def _position_embedding(embedding: Any) -> dict[str, Any]:
    return {
        "num_pos_feats": 2 * embedding.num_pos_feats,
        **_same(embedding, "temperature", "normalize"),
        "scale": None if embedding.scale == 2 * math.pi else embedding.scale,
    }


def _attention(attention: Any) -> dict[str, Any]:
    return {
        **_same(attention, "embedding_dim", "num_heads", "kv_in_dim"),
        "downsample_rate": attention.embedding_dim // attention.internal_dim,
        "dropout": attention.dropout_p,
    }


def _rope_attention(attention: Any) -> dict[str, Any]:
    # The first frequency is 1 radian per column, so the rotation is exactly zero where a row of the grid
    # begins.
    row_starts = (attention.freqs_cis[:, 0].imag == 0).nonzero().flatten().tolist()
    tokens = attention.freqs_cis.shape[0]
    width = row_starts[1] if len(row_starts) > 1 else tokens
    return {
        **_attention(attention),
        "rope_theta": attention.compute_cis.keywords["theta"],
        "rope_k_repeat": attention.rope_k_repeat,
        "feat_sizes": [width, tokens // width],
    }


def _memory_attention_layer(layer: Any) -> dict[str, Any]:
    return {
        "activation": layer.activation_str,
        "dropout": layer.dropout_value,
        "self_attention": layer.self_attn,
        "cross_attention": layer.cross_attn_image,
        **_same(
            layer,
            "d_model",
            "dim_feedforward",
            "pos_enc_at_attn",
            "pos_enc_at_cross_attn_keys",
            "pos_enc_at_cross_attn_queries",
        ),
    }


def _memory_attention(attention: Any) -> dict[str, Any]:
    return {
        **_same(attention, "d_model", "pos_enc_at_input", "num_layers", "batch_first"),
        "layer": attention.layers[0],
    }


def _mask_downsampler(sampler: Any) -> dict[str, Any]:
    first, last = sampler.encoder[0], sampler.encoder[-1]
    return {
        "embed_dim": last.out_channels,
        "kernel_size": first.kernel_size[0],
        "stride": first.stride[0],
        "padding": first.padding[0],
        "total_stride": first.stride[0] ** (len(sampler.encoder) // 3),
    }


def _cx_block(block: Any) -> dict[str, Any]:
    described = {
        "dim": block.dwconv.in_channels,
        "kernel_size": block.dwconv.kernel_size[0],
        "padding": block.dwconv.padding[0],
        "drop_path": getattr(block.drop_path, "drop_prob", 0.0),
        "use_dwconv": block.dwconv.groups == block.dwconv.in_channels,
    }
    # The initial value of a scale that exists is in the weights, not in the config.
    return described if block.gamma is not None else {**described, "layer_scale_init_value": 0.0}


def _fuser(fuser: Any) -> dict[str, Any]:
    described = {"layer": fuser.layers[0], "num_layers": len(fuser.layers)}
    if isinstance(fuser.proj, nn.Conv2d):
        described.update(dim=fuser.proj.in_channels, input_projection=True)
    return described


def _memory_encoder(encoder: Any) -> dict[str, Any]:
    return {
        "in_dim": encoder.pix_feat_proj.in_channels,
        "out_dim": getattr(encoder.out_proj, "out_channels", encoder.pix_feat_proj.in_channels),
        **_same(encoder, "mask_downsampler", "fuser", "position_encoding"),
    }


def _sam2(model: Any) -> dict[str, Any]:
    known = known_class(type(model))
    assert known is not None
    base = next(cls for cls in type(model).__mro__ if class_path(cls) == known)
    # compile_image_encoder and freeze_image_encoder leave no attribute: they act on the finished model.
    names = constructor_parameters(base).keys() - {"compile_image_encoder", "freeze_image_encoder"}
    described = _same(model, *sorted(names - {"no_obj_embed_spatial"}))
    described["no_obj_embed_spatial"] = model.no_obj_embed_spatial is not None
    # These three are plain switches of the decoder that people also set on the finished model.
    extra = dict(model.sam_mask_decoder_extra_args or {})
    for name, default in _STABILITY.items():
        value = getattr(model.sam_mask_decoder, name, default)
        if extra.get(name, default) != value:
            extra[name] = value
    described["sam_mask_decoder_extra_args"] = extra or None
    return described


#: SAM2's class -> the function that recovers its constructor's arguments. Nothing else is ever built from a
#: config.
DESCRIBERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "sam2.modeling.backbones.hieradet.Hiera": _hiera,
    "sam2.modeling.backbones.image_encoder.FpnNeck": _fpn_neck,
    "sam2.modeling.backbones.image_encoder.ImageEncoder": _image_encoder,
    "sam2.modeling.position_encoding.PositionEmbeddingSine": _position_embedding,
    "sam2.modeling.sam.transformer.Attention": _attention,
    "sam2.modeling.sam.transformer.RoPEAttention": _rope_attention,
    "sam2.modeling.memory_attention.MemoryAttentionLayer": _memory_attention_layer,
    "sam2.modeling.memory_attention.MemoryAttention": _memory_attention,
    "sam2.modeling.memory_encoder.MaskDownSampler": _mask_downsampler,
    "sam2.modeling.memory_encoder.CXBlock": _cx_block,
    "sam2.modeling.memory_encoder.Fuser": _fuser,
    "sam2.modeling.memory_encoder.MemoryEncoder": _memory_encoder,
    "sam2.modeling.sam2_base.SAM2Base": _sam2,
    "sam2.sam2_video_predictor.SAM2VideoPredictor": _sam2,
    "sam2.sam2_video_predictor.SAM2VideoPredictorVOS": _sam2,
    "training.model.sam2.SAM2Train": _sam2,
}


def class_path(cls: type) -> str:
    """A class's import path, as written in a config's ``_target_``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def known_class(cls: type) -> str | None:
    """The import path of the class or of its nearest base that can be described, or ``None``."""
    return next((path for base in cls.__mro__ if (path := class_path(base)) in DESCRIBERS), None)


def describes_model(cls: type) -> bool:
    """Whether the class is a whole model of the SAM2Base family rather than a part of one."""
    path = known_class(cls)
    return path is not None and DESCRIBERS[path] is _sam2


def overridden_methods(cls: type, known: str) -> list[str]:
    """The methods of the part ``known`` that a class derived from it replaces; none for whole models.

    Whole models may replace methods because whoever loads one can name the class again.
    """
    if describes_model(cls):
        return []
    derived = cls.__mro__[: next(i for i, base in enumerate(cls.__mro__) if class_path(base) == known)]
    names = {name for base in derived for name, value in vars(base).items() if callable(value)}
    return sorted(names & set(dir(cls.__mro__[len(derived)])) - {"__init__"})
