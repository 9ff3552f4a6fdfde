"""The old path of :mod:`qsam2_ao.deploy.inputs`."""

import warnings

from ..deploy.inputs import ActivationQuantizer

__all__ = ["ActivationQuantizer"]

warnings.warn("qsam2_ao.lowering.activation has moved to qsam2_ao.deploy.inputs", DeprecationWarning, stacklevel=2)
