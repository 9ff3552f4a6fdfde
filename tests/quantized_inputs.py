"""Inputs of quantized layers: quantizers with codes of every kind, and values that use all of their codes."""

from __future__ import annotations

import torch

from qsam2_ao.deploy.inputs import ActivationQuantizer

QUANTIZERS = {
    "8 bits": ActivationQuantizer(0, 255, 0.02, 117.0),
    "8 bits, signed codes": ActivationQuantizer(-128, 127, 0.02, -3.0),
    "4 bits": ActivationQuantizer(0, 15, 0.3, 7.0),
    "2 bits": ActivationQuantizer(0, 3, 1.5, 1.0),
}


def activations(quantizer: ActivationQuantizer, *shape: int) -> torch.Tensor:
    """Values over the whole grid and beyond, none in the middle between two codes: signed codes may part there."""
    codes = torch.randint(quantizer.quant_min - 9, quantizer.quant_max + 10, shape)
    return (codes - quantizer.zero_point + 0.8 * torch.rand(shape) - 0.4) * quantizer.scale
