"""How SAM2's predictors are set up for an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..errors import DataError
from ..threads import attributes_set

Protocol = Literal["official", "deployed"]
Autocast = Literal["none", "bf16"]

#: What ``sam2.build_sam`` switches on with ``apply_postprocessing``, which SAM2's own evaluation leaves off, and the
#: constraint that its tools/vos_inference.py has on for maps of ids and off for a mask per object: here a map is made
#: of the masks of all objects afterwards, which comes to the same and also holds for objects that appear later.
_OFF: dict[str, Any] = {
    "fill_hole_area": 0,
    "binarize_mask_from_pts_for_mem_enc": False,
    "non_overlap_masks": False,
    "sam_mask_decoder.dynamic_multimask_via_stability": False,
}


@contextmanager
def following(model: nn.Module, protocol: Protocol) -> Iterator[None]:
    """Set a model up as a protocol has it inside the ``with`` block, and as it was afterwards.

    Of threads that share modules, the first finds their settings and the last restores them: a model is measured by one
    protocol at a time.

    Args:
        model: A model of the SAM2Base family.
        protocol: "official" computes what SAM2's tools/vos_inference.py does: no holes are filled, no masks from points
            binarised for the memory, and no other mask is chosen for one that is not stable. "deployed" leaves the
            model's settings.

    Raises:
        DataError: The protocol is unknown.

    Example:
        >>> with following(model, "official"):
        ...     model.sam_mask_decoder.dynamic_multimask_via_stability
        False
    """
    if protocol not in get_args(Protocol):
        raise DataError(f"protocol must be one of {', '.join(get_args(Protocol))}, got {protocol!r}")
    changes: list[tuple[nn.Module, str, Any]] = []
    for path, value in _OFF.items() if protocol == "official" else ():
        owner, _, name = path.rpartition(".")
        module = model.get_submodule(owner)
        if hasattr(module, name):  # a SAM2Base has not what the video predictor adds
            changes.append((module, name, value))
    with attributes_set(changes):
        yield


@contextmanager
def autocast(device: torch.device | str, dtype: Autocast) -> Iterator[None]:
    """Run what is in the ``with`` block in bfloat16 where torch deems it safe, as vos_inference.py does on CUDA.

    Args:
        device: Where the model is.
        dtype: "none" or "bf16".

    Raises:
        DataError: The dtype is unknown.

    Example:
        >>> with autocast("cpu", "bf16"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    if dtype not in get_args(Autocast):
        raise DataError(f"autocast must be one of {', '.join(get_args(Autocast))}, got {dtype!r}")
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == "bf16"):
        yield
