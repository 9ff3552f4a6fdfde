"""What makes the dependencies import and run where they otherwise don't, each patch in one place.

Importing qsam2_ao arranges for what an import needs (torchvision without its compiled operators, torchao's noise,
sam2's hold on Hydra, modules that want a folder where none can be written). SAM2's own classes stay as they are until
qsam2_ao makes a model: then its image predictor learns to take the model's input size, and its video predictor to keep
memories as the model says. Every repair is made when its package is imported, looks first whether it is needed, and
changes nothing where it isn't. Nothing is imported here: the command line's help needs none of them.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager

from .hook import Repair, RepairingFinder

_PREDICTOR = "sam2.sam2_image_predictor"
_VIDEO_PREDICTOR = "sam2.sam2_video_predictor"


def _torchvision() -> AbstractContextManager[None]:
    from .torchvision_ops import operators_declared

    return operators_declared()


def _torchao() -> AbstractContextManager[None]:
    from .deferred import torchao_whole

    return torchao_whole()


def _roi_align() -> AbstractContextManager[None]:
    from .deferred import compiler_deferred

    return compiler_deferred()


def _image_predictor() -> AbstractContextManager[None]:
    from .image_predictor import any_input_size

    return any_input_size()


def _video_predictor() -> AbstractContextManager[None]:
    from .video_predictor import lean_video

    return lean_video()


def _sam2() -> AbstractContextManager[None]:
    from .hydra_default import initialised_by_default

    return initialised_by_default()


def _no_folder() -> AbstractContextManager[None]:
    from .no_folder import no_folder_needed

    return no_folder_needed()


_REPAIRS: dict[str, Repair] = {
    "torchvision": _torchvision,
    "torchvision.ops.roi_align": _roi_align,
    "torchao": _torchao,
    "sam2": _sam2,
    "torch._dynamo.package": _no_folder,
    "portalocker.utils": _no_folder,
}
_FINDER = RepairingFinder(_REPAIRS)


def arrange_repairs() -> None:
    """Let the packages that need it be repaired when they are imported; calling it again changes nothing.

    Example:
        >>> arrange_repairs()
        >>> from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def adapt_predictors() -> None:
    """Adapt SAM2's predictors, now or when they are imported.

    ``SAM2ImagePredictor`` takes models of any input size then, and ``SAM2VideoPredictor`` keeps memories as the model
    says and makes only the mask large that it uses.

    Whatever makes or changes a model calls it; calling it again changes nothing.

    Example:
        >>> adapt_predictors()
        >>> predictor = SAM2ImagePredictor(model)
    """
    arrange_repairs()
    for module, repair in ((_PREDICTOR, _image_predictor), (_VIDEO_PREDICTOR, _video_predictor)):
        _REPAIRS[module] = repair
        if module in sys.modules:
            with repair():
                pass


__all__ = ["adapt_predictors", "arrange_repairs"]
