"""SAM2's weights as the transformers library names them, in the official names.

One model in two vocabularies: every tensor of ``Sam2VideoModel`` is one here, but for the four embeddings of points,
which are rows of one table there, and the random matrix of position encodings, which is stored twice there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

#: Names that a state dict of ``Sam2Model`` or ``Sam2VideoModel`` has, and none in the official names.
MARK = "vision_encoder.backbone.patch_embed.projection.weight"
_TWICE = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
_POINTS = "prompt_encoder.point_embed.weight"
_FINAL = "memory_encoder.mask_downsampler.final_conv."

#: Applied in this order, each to the result of the one before.
_RENAMED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^vision_encoder\.backbone\.patch_embed\.projection\.", "image_encoder.trunk.patch_embed.proj."),
        (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
        (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
        (r"^(prompt_encoder\.shared|shared_image)_embedding\.positional_embedding$",
         "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
        (r"^prompt_encoder\.mask_embed\.conv1\.", "sam_prompt_encoder.mask_downscaling.0."),
        (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "sam_prompt_encoder.mask_downscaling.1."),
        (r"^prompt_encoder\.mask_embed\.conv2\.", "sam_prompt_encoder.mask_downscaling.3."),
        (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "sam_prompt_encoder.mask_downscaling.4."),
        (r"^prompt_encoder\.mask_embed\.conv3\.", "sam_prompt_encoder.mask_downscaling.6."),
        (r"^prompt_encoder\.", "sam_prompt_encoder."),
        (r"^mask_decoder\.upscale_conv1\.", "sam_mask_decoder.output_upscaling.0."),
        (r"^mask_decoder\.upscale_layer_norm\.", "sam_mask_decoder.output_upscaling.1."),
        (r"^mask_decoder\.upscale_conv2\.", "sam_mask_decoder.output_upscaling.3."),
        (r"^mask_decoder\.", "sam_mask_decoder."),
        (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
        (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
        (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
        (r"^(memory_encoder\.fuser\.layers\.\d+)\.scale$", r"\1.gamma"),
        (r"\.depthwise_conv\.", ".dwconv."),
        (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
        (r"\.layer_norm", ".norm"),
        (r"\.o_proj\.", ".out_proj."),
        (r"^object_pointer_proj\.", "obj_ptr_proj."),
        (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
        (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
        (r"^no_memory_embedding$", "no_mem_embed"),
        (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
        (r"^no_object_pointer$", "no_obj_ptr"),
        (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    )
]  # fmt: skip
_MLP = re.compile(r"(?P<head>.+)\.(?P<step>proj_in|layers\.(?P<inner>\d+)|proj_out)\.(?P<kind>weight|bias)")
_SAMPLER = re.compile(r"memory_encoder\.mask_downsampler\.layers\.(\d+)\.(conv|layer_norm)\.(weight|bias)")


def official_names(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of a ``Sam2Model`` or ``Sam2VideoModel`` under the official names.

    Args:
        state: The state dict in transformers' names.
        source: What to call its origin in warnings.

    Returns:
        The same tensors; the table of point embeddings in rows, and one of the two position encodings. A name that the
        library does not have is kept, for the model to refuse.

    Example:
        >>> list(official_names({"no_memory_embedding": torch.zeros(1, 1, 4)}, "here"))
        ['no_mem_embed']
    """
    matrices = [state[name] for name in _TWICE if name in state]
    if len(matrices) == 2 and not (matrices[0].shape == matrices[1].shape and bool((matrices[0] == matrices[1]).all())):
        logger.warning(
            "%s: %s and %s differ, as only in a model that was never trained; SAM2 has one of them, and took the first",
            source,
            *_TWICE,
        )
    heads = {match["head"] for name in state if (match := _MLP.fullmatch(name)) and match["step"] == "proj_in"}
    depth = {head: 1 + sum(f"{head}.layers.{index}.weight" in state for index in range(len(state))) for head in heads}
    stages = sum(_SAMPLER.fullmatch(name) is not None for name in state) // 4
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == _TWICE[1] and _TWICE[0] in state:
            continue
        if name == _POINTS and value.dim() == 2:
            rows = {f"sam_prompt_encoder.point_embeddings.{i}.weight": value[i : i + 1] for i in range(len(value))}
            renamed.update(rows)
            continue
        own = name
        if (match := _MLP.fullmatch(name)) and match["head"] in heads:
            inner = match["inner"]
            layer = 0 if match["step"] == "proj_in" else depth[match["head"]] if inner is None else int(inner) + 1
            own = f"{match['head']}.layers.{layer}.{match['kind']}"
        elif match := _SAMPLER.fullmatch(name):
            index = 3 * int(match[1]) + (match[2] == "layer_norm")
            own = f"memory_encoder.mask_downsampler.encoder.{index}.{match[3]}"
        elif name.startswith(_FINAL):
            own = f"memory_encoder.mask_downsampler.encoder.{3 * stages}.{name.removeprefix(_FINAL)}"
        for pattern, replacement in _RENAMED:
            own = pattern.sub(replacement, own)
        renamed[own] = value
    return renamed


class Place(NamedTuple):
    """Where a tensor of SAM2 is in a model of the library.

    Attributes:
        name: The tensor there.
        row: Which row of it; None for the whole.
    """

    name: str
    row: int | None


def library_names(shapes: Mapping[str, torch.Size]) -> dict[str, tuple[Place, ...]]:
    """The inverse of :func:`official_names`.

    Args:
        shapes: Name in the library -> shape, of a whole model.

    Returns:
        Official name -> where it is there; the matrix of position encodings is in two places.

    Example:
        >>> library_names({"no_memory_embedding": torch.Size([1, 1, 4])})
        {'no_mem_embed': (Place(name='no_memory_embedding', row=None),)}
    """
    blank = {name: torch.empty(shape, device="meta") for name, shape in shapes.items() if name != _TWICE[1]}
    known = {id(tensor): name for name, tensor in blank.items()}
    found: dict[str, tuple[Place, ...]] = {}
    rows = 0
    for official, tensor in official_names(blank, "the model").items():
        if id(tensor) in known:
            found[official] = (Place(known[id(tensor)], None),)
        else:
            found[official], rows = (Place(_POINTS, rows),), rows + 1
        if found[official][0].name == _TWICE[0] and _TWICE[1] in shapes:
            found[official] += (Place(_TWICE[1], None),)
    return found
