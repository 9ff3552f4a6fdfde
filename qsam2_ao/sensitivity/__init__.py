"""What quantizing each layer costs, and the bits of each layer that cost the least within a size."""

from .assign import assign_bits, budget_bytes, uniform_bytes
from .assignment import Assignment
from .layers import QuantizableLayer, quantizable_layers
from .measure import LayerSensitivity, Sensitivity, measure_sensitivity

__all__ = [
    "Assignment",
    "LayerSensitivity",
    "QuantizableLayer",
    "Sensitivity",
    "assign_bits",
    "budget_bytes",
    "measure_sensitivity",
    "quantizable_layers",
    "uniform_bytes",
]
