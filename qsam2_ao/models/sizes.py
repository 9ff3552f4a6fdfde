"""Which SAM2 a state dict is of: its size by shapes, its version by the tensors that only 2.1 has."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .embedded import EMBEDDED_256_CONFIG, EMBEDDED_CONFIG

#: Name of the first tensor of the image encoder, which every SAM2 has.
MARK = "image_encoder.trunk.patch_embed.proj.weight"
_BLOCK = re.compile(r"image_encoder\.trunk\.blocks\.(\d+)\.")
#: What SAM 2.1 added.
_ONLY_IN_2_1 = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.weight")
#: What only a model that remembers frames has.
MEMORY = ("memory_attention.", "memory_encoder.")
OF_MEMORY = (*MEMORY, "maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_", "mask_downsample.", "obj_ptr_")
"""What all tensors begin with that only tracking reads."""
#: Channels of the first stage, blocks -> size.
_SIZES = {(96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}
_OWN = {(32, 7): str(EMBEDDED_CONFIG), (48, 7): str(EMBEDDED_256_CONFIG)}


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """The model that a state dict in the official names is of.

    Args:
        state: Tensors by name.

    Returns:
        A short name ("sam2.1-t"), the path of the config of one of this package's own models, or None if it is of no
        size that there is a config for. Weights of the image part alone are the same model in both versions and count
        as 2.1.

    Example:
        >>> recognise(build_official("sam2-t").state_dict())  # doctest: +SKIP
        'sam2-t'
    """
    first = getattr(state.get(MARK), "shape", ())
    if not first:
        return None
    key = first[0], 1 + max((int(m[1]) for name in state if (m := _BLOCK.match(name))), default=-1)
    if key not in _SIZES:
        return _OWN.get(key)
    newer = image_part_only(state) or any(name in state for name in _ONLY_IN_2_1)
    return f"sam2{'.1' if newer else ''}-{_SIZES[key]}"


def image_part_only(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict lacks all of the memory, as that of transformers' ``Sam2Model`` does."""
    return MARK in state and not any(name.startswith(MEMORY) for name in state)


def in_words(state: Mapping[str, Tensor]) -> str:
    """What a state dict is of, for errors.

    Example:
        >>> in_words({MARK: torch.zeros(100, 3, 7, 7)})
        'a SAM2 of 100 channels and 0 blocks'
    """
    if name := recognise(state):
        return name
    first = getattr(state.get(MARK), "shape", (0,))
    blocks = len({m[1] for key in state if (m := _BLOCK.match(key))})
    return f"a SAM2 of {first[0]} channels and {blocks} blocks"
