"""SAM2's video predictor: memories kept in another form, and one mask made large instead of three."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .lock import PATCHING
from .rebind import rebound

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

# Parts of a model keep attributes, when they are traced or pickled, that have no underscore.
_KEEP = "keep_memory"
_READERS = ("_forward_sam_heads", "_use_mask_as_output", "_track_step", "track_step")


def keep_memories_as(model: SAM2Base, keep: Callable[[Tensor], Tensor] | None) -> None:
    """Have SAM2's video predictor keep a model's memories in another form, in place.

    Predictors that share the model's parts (``as_class``) do as well, so it is the memory encoder that says it.

    Args:
        model: A model of the SAM2Base family.
        keep: bfloat16 ``[B, C, H, W]`` -> a tensor of that shape that moves between devices and that operations read
            as floats; None for bfloat16.

    Example:
        >>> keep_memories_as(model, None)
    """
    setattr(model.memory_encoder, _KEEP, keep)


@contextmanager
def lean_video() -> Iterator[None]:
    """Let ``SAM2VideoPredictor``, once imported, keep memories as it is told, and make only the mask used large.

    Its masks are the same to the bit; on one thread of a CPU all three are made large as ever. Subclasses that track in
    another way, and training, see no difference.

    Example:
        >>> with lean_video():
        ...     from sam2.sam2_video_predictor import SAM2VideoPredictor
    """
    yield
    predictor = importlib.import_module("sam2.sam2_video_predictor").SAM2VideoPredictor
    base = importlib.import_module("sam2.modeling.sam2_base").SAM2Base
    with PATCHING:
        if hasattr(predictor._run_memory_encoder, "_qsam2_original"):
            return
        for name, adapted in (("_run_memory_encoder", _memory), ("_run_single_frame_inference", _frame)):
            setattr(predictor, name, _marked(getattr(predictor, name), adapted))
        predictor._forward_sam_heads = _one_mask(base, predictor)


def _marked(original: Callable[..., Any], adapted: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return adapted(getattr(self.memory_encoder, _KEEP, None), *original(self, *args, **kwargs))

    method._qsam2_original = original  # type: ignore[attr-defined]
    return method


def _memory(keep: Callable[[Tensor], Tensor] | None, features: Tensor, positions: list[Tensor]) -> Any:
    return features if keep is None else keep(features), positions


def _frame(keep: Callable[[Tensor], Tensor] | None, output: dict[str, Any], masks: Tensor) -> Any:
    if keep is not None and output["maskmem_features"] is not None:
        output["maskmem_features"] = keep(output["maskmem_features"])
    return output, masks


class _Enlarged:
    """Masks ``[B, M, h, w]`` that are made large when one of them is taken."""

    def __init__(self, masks: Tensor, settings: dict[str, Any]) -> None:
        self._masks, self._settings = masks, settings

    def __getitem__(self, index: tuple[Tensor, Tensor]) -> Tensor:
        return F.interpolate(self._masks[index].unsqueeze(1), **self._settings)[:, 0]


def _interpolate(masks: Tensor, **settings: Any) -> Any:
    # On one thread torch has another kernel for three channels than for one, whose last bits differ.
    other_kernel = masks.device.type == "cpu" and torch.get_num_threads() == 1
    # Prompts are made smaller under the same name; they are one mask.
    return F.interpolate(masks, **settings) if masks.shape[1] == 1 or other_kernel else _Enlarged(masks, settings)


def _one_mask(base: type[Any], predictor: type[Any]) -> Callable[..., Any]:
    """``_forward_sam_heads`` with the three masks' large forms made when they are read, which is of one alone."""
    original = base._forward_sam_heads
    lazy = rebound(original, F=SimpleNamespace(interpolate=_interpolate))

    @functools.wraps(original)
    def _forward_sam_heads(self: Any, *args: Any, **kwargs: Any) -> Any:
        # A subclass with steps of its own may read all three.
        own = any(getattr(type(self), name) is not getattr(predictor, name) for name in _READERS)
        return (original if own or self.training else lazy)(self, *args, **kwargs)

    return _forward_sam_heads
