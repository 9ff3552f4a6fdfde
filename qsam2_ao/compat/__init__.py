"""What makes the dependencies import and run where they otherwise don't: importing qsam2_ao arranges for it, once.

Every repair is made when its package is imported, looks first whether it is needed, and changes nothing where it isn't.
Nothing is imported here: the command line's help needs none of them.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager

from .hook import RepairingFinder


def _torchvision() -> AbstractContextManager[None]:
    from .torchvision_ops import operators_declared

    return operators_declared()


def _torchao() -> AbstractContextManager[None]:
    from .torchao_import import import_noise_dropped

    return import_noise_dropped()


def _image_predictor() -> AbstractContextManager[None]:
    from .image_predictor import any_input_size

    return any_input_size()


_FINDER = RepairingFinder(
    {"torchvision": _torchvision, "torchao": _torchao, "sam2.sam2_image_predictor": _image_predictor}
)


def arrange_repairs() -> None:
    """Let every repair be made in time; calling it again changes nothing.

    Example:
        >>> arrange_repairs()
        >>> from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    """
    if _FINDER in sys.meta_path:
        return
    sys.meta_path.insert(0, _FINDER)
    if "sam2.sam2_image_predictor" in sys.modules:
        with _image_predictor():
            pass


__all__ = ["arrange_repairs"]
