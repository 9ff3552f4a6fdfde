"""qsam2_ao: Segment Anything Model 2, quantized to 2-8 bits and still running in SAM2's own predictors."""

from . import compat

# Before anything imports sam2's predictors or torchvision.
compat.ensure_all()
