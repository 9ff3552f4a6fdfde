"""Moved to ``qsam2_ao.recipe``; this module forwards to it."""

from __future__ import annotations

import warnings

from .recipe.prepared import code_range as code_range
from .recipe.prepared import fake_quantizers as fake_quantizers
from .recipe.prepared import input_quantizer as input_quantizer
from .recipe.prepared import is_per_tensor as is_per_tensor
from .recipe.prepared import layer_nodes as layer_nodes
from .recipe.prepared import quantized_layers as quantized_layers
from .recipe.prepared import without_input_quantizers as without_input_quantizers

warnings.warn("qsam2_ao.fake_quant has moved to qsam2_ao.recipe", DeprecationWarning, stacklevel=2)
