"""What makes the dependencies import and run where they otherwise don't: importing qsam2_ao applies it, once.

Every repair looks first whether it is needed and changes nothing where it isn't.
"""

from .image_predictor import ensure_image_predictor
from .torchao_import import import_torchao
from .torchvision_ops import ensure_torchvision


def ensure_all() -> None:
    """Apply every repair of this package; calling it again changes nothing.

    Example:
        >>> ensure_all()
        >>> from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    """
    ensure_torchvision()
    import_torchao()
    ensure_image_predictor()


__all__ = ["ensure_all", "ensure_image_predictor", "ensure_torchvision", "import_torchao"]
