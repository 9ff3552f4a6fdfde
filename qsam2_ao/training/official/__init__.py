"""SAM2's own trainer with quantization: a model that Hydra builds, a trainer that resumes exactly, and their launcher.

A config of SAM2's training becomes one of quantization-aware training by three changes: ``trainer._target_`` is
``qsam2_ao.training.official.QATTrainer``, ``trainer.model._target_`` is
``qsam2_ao.training.official.quantized_sam2``, and ``trainer.model`` has a block ``qsam2``. The configs in
``qsam2_ao/configs/qsam2`` do so on top of SAM2's MOSE fine-tuning.
"""

from .factory import quantized_sam2, uncalibrated_sam2
from .trainer import QATTrainer

__all__ = ["QATTrainer", "quantized_sam2", "uncalibrated_sam2"]
