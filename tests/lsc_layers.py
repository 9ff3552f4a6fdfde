"""Quantizers of LSC to be tested, and a layer that has them."""

from __future__ import annotations

from torch import nn

from qsam2_ao.quantizers import LSCFakeQuantize, broadcast_qparam, dequantize_affine, quantize_affine

GRANULARITIES = [("tensor", None), ("channel", None), ("group", 8)]


def weight_quantizer(weight, bits=4, **settings):
    quantizer = LSCFakeQuantize(bits, is_weight=True, **settings)
    quantizer.initialize(weight)
    return quantizer


def deployed(quantizer, x):
    scale, zero_point = quantizer.qparams()
    scale = broadcast_qparam(scale, tuple(x.shape), quantizer.group_size)
    zero_point = broadcast_qparam(zero_point, tuple(x.shape), quantizer.group_size)
    codes = quantize_affine(x, scale, zero_point, *quantizer.codes)
    return dequantize_affine(codes, scale, zero_point).to(x.dtype)


class Layer(nn.Module):
    """A linear layer as torch.ao's QAT modules have it."""

    def __init__(self, bits=4, features=16, **settings):
        super().__init__()
        self.linear = nn.Linear(features, features)
        self.weight_fake_quant = LSCFakeQuantize(bits, is_weight=True, **settings)
        self.input_fake_quant = LSCFakeQuantize(8, name="layer")

    def forward(self, x):
        weight = self.weight_fake_quant(self.linear.weight)
        return nn.functional.linear(self.input_fake_quant(x), weight, self.linear.bias)
