"""SAM2's image predictor for any input size: sam2 1.1 has the feature sizes of 1024 pixels built in."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .lock import PATCHING
from .rebind import rebound

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base
    from sam2.sam2_image_predictor import SAM2ImagePredictor


def feature_sizes(model: SAM2Base) -> list[tuple[int, int]]:
    """Height and width of the three feature maps that SAM2's image predictor keeps, finest first.

    Args:
        model: A model of the SAM2Base family.

    Returns:
        The sizes at a quarter, a half and once the backbone's stride: 256, 128 and 64 at 1024 pixels.
    """
    sides = [model.image_size // (model.backbone_stride // divisor) for divisor in (4, 2, 1)]
    return [(side, side) for side in sides]


def eager_predictor(model: SAM2Base) -> SAM2ImagePredictor:
    """``SAM2ImagePredictor(model)`` for any input size, with its transforms as they are written.

    SAM2 compiles them by TorchScript, which computes the same and takes as long as the network for a picture.

    Args:
        model: A model of the SAM2Base family.

    Example:
        >>> eager_predictor(model).set_image(np.zeros((96, 96, 3), np.uint8))
    """
    from sam2.sam2_image_predictor import SAM2ImagePredictor
    from sam2.utils.transforms import SAM2Transforms

    as_written = SimpleNamespace(jit=SimpleNamespace(script=lambda module: module))

    def transforms(*args: Any, **kwargs: Any) -> SAM2Transforms:
        made = SAM2Transforms.__new__(SAM2Transforms)
        rebound(SAM2Transforms.__init__, torch=as_written)(made, *args, **kwargs)
        return made

    predictor = SAM2ImagePredictor.__new__(SAM2ImagePredictor)
    rebound(SAM2ImagePredictor.__init__, SAM2Transforms=transforms)(predictor, model)
    predictor._bb_feat_sizes = feature_sizes(model)
    return predictor


@contextmanager
def any_input_size() -> Iterator[None]:
    """Let ``SAM2ImagePredictor``, once imported, take its feature sizes from the model instead of assuming 1024 pixels.

    Models of 1024 pixels, as all official ones, see no difference. Threads construct theirs one after the other.

    Example:
        >>> with any_input_size():
        ...     from sam2.sam2_image_predictor import SAM2ImagePredictor
    """
    yield
    predictor = importlib.import_module("sam2.sam2_image_predictor").SAM2ImagePredictor
    with PATCHING:
        if not hasattr(predictor.__init__, "_qsam2_original"):
            predictor.__init__ = _adapted(predictor.__init__)


def _adapted(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(self: Any, sam_model: Any, *args: Any, **kwargs: Any) -> None:
        with PATCHING:  # SAM2 compiles its transforms by TorchScript, which two threads may not do at once
            original(self, sam_model, *args, **kwargs)
        self._bb_feat_sizes = feature_sizes(self.model)

    __init__._qsam2_original = original  # type: ignore[attr-defined]
    return __init__
