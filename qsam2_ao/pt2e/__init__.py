"""LSC in torchao's PT2E flow: networks that ``torch.export`` captured instead of FX graphs of SAM2's parts."""

from .modes import eval_exported, train_exported
from .quantizer import QSAM2Quantizer

__all__ = ["QSAM2Quantizer", "eval_exported", "train_exported"]
