"""torchvision without its compiled operators, as with a CPU-only torch and the default torchvision wheel.

Such a torchvision raises "operator torchvision::nms does not exist" while it is imported, and SAM2's image
predictor and mask generator import it. Its transforms are plain Python; the one operator that SAM2 needs is
non-maximum suppression.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    # Only named by torchvision's registrations; without an implementation, as for quantized boxes.
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# The registrations live as long as this object.
_library: torch.library.Library | None = None


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression in plain torch, as ``torchvision.ops.nms`` computes it.

    Boxes are visited in order of falling score (equal scores: lower index first); each one still there
    removes the later ones that it overlaps by more than ``iou_threshold``.

    Args:
        boxes: ``[N, 4]`` floating-point corners ``(x1, y1, x2, y2)``.
        scores: ``[N]`` scores.
        iou_threshold: Boxes with an intersection over union greater than this are removed.

    Returns:
        ``[K]`` int64 indices of the boxes kept, by falling score, on the device of ``boxes``.

    Raises:
        ValueError: The shapes are not ``[N, 4]`` and ``[N]``.

    Example:
        >>> nms(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([0.1, 0.9]), 0.5)
        tensor([1])
    """
    if boxes.dim() != 2 or boxes.size(1) != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(f"nms takes boxes [N, 4] and scores [N], got {tuple(boxes.shape)} and {tuple(scores.shape)}")
    order = torch.sort(scores, descending=True, stable=True).indices
    x1, y1, x2, y2 = boxes[order].to(torch.promote_types(boxes.dtype, torch.float32)).unbind(1)
    area = (x2 - x1) * (y2 - y1)
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    kept: list[int] = []
    # One row of overlaps at a time: memory stays linear in N (the mask generator has thousands of boxes).
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        width = (torch.minimum(x2[i], x2[i + 1 :]) - torch.maximum(x1[i], x1[i + 1 :])).clamp(min=0)
        height = (torch.minimum(y2[i], y2[i + 1 :]) - torch.maximum(y1[i], y1[i + 1 :])).clamp(min=0)
        overlap = width * height
        # 0 / 0 for two empty boxes is NaN, which compares as "not above the threshold".
        alive[i + 1 :] &= ~(overlap / (area[i] + area[i + 1 :] - overlap) > iou_threshold)
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]


def operators_missing() -> bool:
    """Whether torchvision is installed without compiled operators that load into this torch.

    Returns:
        ``False`` where torchvision's own operators work or torchvision is not installed at all.
    """
    if hasattr(torch.ops.torchvision, "nms"):
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    # Load the compiled library as torchvision itself does first of all when imported.
    folder = spec.submodule_search_locations[0]
    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    extension = importlib.machinery.FileFinder(str(Path(folder)), loader).find_spec("_C")
    if extension is not None and extension.origin is not None:
        try:
            torch.ops.load_library(extension.origin)
        except (ImportError, OSError):
            return True
    return not hasattr(torch.ops.torchvision, "nms")


@contextmanager
def operators_declared() -> Iterator[None]:
    """Make ``import torchvision`` work inside the ``with`` block where its operators don't load, and stay so.

    Non-maximum suppression is then the one above. A torchvision with operators that load is left as it is.

    Example:
        >>> with operators_declared():
        ...     from torchvision.ops.boxes import batched_nms
    """
    global _library
    if _library is None and operators_missing():
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        library.impl("nms", nms, "CompositeExplicitAutograd")
        _library = library
    yield
    if _library is not None:
        # nms() asks for compiled operators before it calls the one registered above.
        boxes: Any = importlib.import_module("torchvision.ops.boxes")
        boxes._assert_has_ops = lambda: None
