"""The torch.ao BackendConfig of this backend: which operators are quantized, and with which dtypes."""

from __future__ import annotations

import torch
import torch.ao.nn.qat as nnqat
from torch import nn
from torch.ao.quantization.backend_config import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    ObservationType,
)

# Float layer -> the module that fake-quantizes its weight during training.
QAT_MODULES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: nnqat.Linear, nn.Conv2d: nnqat.Conv2d}

_WEIGHT_AND_INPUT = DTypeConfig(
    input_dtype=torch.quint8, output_dtype=torch.quint8, weight_dtype=torch.qint8, bias_dtype=torch.float
)
_WEIGHT_ONLY = DTypeConfig(
    input_dtype=torch.float, output_dtype=torch.float, weight_dtype=torch.qint8, bias_dtype=torch.float
)


def qsam2_backend_config() -> BackendConfig:
    """Linear and Conv2d layers with quantized weights, and quantized or float inputs.

    Everything else (attention, normalization, residual additions, transposed convolutions) stays float. Integer
    grids of fewer than 8 bits live inside the 8-bit dtypes that torch.ao knows.

    Returns:
        A config for ``torch.ao.quantization.quantize_fx.prepare_qat_fx``.

    Example:
        >>> prepare_qat_fx(graph, qconfig_mapping, (), backend_config=qsam2_backend_config())
    """
    patterns = []
    for float_class, qat_class in QAT_MODULES.items():
        # One pattern for the float layer (to be swapped) and one for the swapped layer (to get an input
        # fake-quantizer): with the first alone torch.ao quantizes nothing, without a word.
        for pattern in (float_class, qat_class):
            patterns.append(
                BackendPatternConfig(pattern)
                .set_observation_type(ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
                .set_dtype_configs([_WEIGHT_AND_INPUT, _WEIGHT_ONLY])
                .set_root_module(float_class)
                .set_qat_module(qat_class)
            )
    return BackendConfig("qsam2").set_backend_pattern_configs(patterns)
