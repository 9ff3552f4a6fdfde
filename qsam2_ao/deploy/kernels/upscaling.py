"""The mask decoder's upscaling: transposed convolutions as matrix products, and what follows on the kernels.

``MaskDecoder`` adds features of the encoder between these modules, so that they stay five in their order. Images are
channels last between them, as the transformer before and the encoder's features are, and first behind the last, as the
product with the hypernetworks reads them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import LayerNorm2d
from torch import Tensor, nn

from ...native import fast_float
from .casts import caller_dtype, readable, writable
from .machine import OfThisMachine
from .norm import Norm


class Upscale(OfThisMachine):
    """A transposed convolution whose kernel is its stride: ``[B, C, H, W]`` -> ``[B, out, H stride, W stride]``."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        weight = conv.weight.detach().permute(2, 3, 1, 0).flatten(0, 2)
        self.register_buffer("weight", weight.to(fast_float(weight.device)).contiguous())
        bias = conv.bias.detach() if conv.bias is not None else weight.new_zeros(conv.out_channels)
        self.register_buffer("bias", bias.float())
        self.stride = conv.stride[0]

    def forward(self, x: Tensor) -> Tensor:
        """The larger image, in the dtype of autocast or else of ``x``."""
        dtype = caller_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.permute(0, 2, 3, 1).to(self.weight.dtype)
            products = F.linear(tokens.flatten(0, 2), self.weight).view(*tokens.shape[:3], self.weight.shape[0])
        pixels = torch.ops.qsam2.pixels(products, self.bias, self.stride, writable(dtype))
        return pixels.to(dtype).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Size and stride."""
        return f"{self.weight.shape[1]}, {self.bias.shape[0]}, stride={self.stride}"


class ImageNorm(Norm):
    """Layer normalization over the channels of ``[B, C, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, and return the dtype of autocast or else of ``x``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).to(caller_dtype(x))


class GeluPlanes(nn.Module):
    """GELU of ``[B, C, H, W]`` in any layout -> contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``x``, and return the dtype of autocast or else of ``x``."""
        dtype = caller_dtype(x)
        return torch.ops.qsam2.gelu_planes(readable(x), writable(dtype)).to(dtype)


def lower_upscaling(model: SAM2Base) -> None:
    """Give a model on the CPU these modules, in place; on a GPU, or with other layers than SAM2's, it keeps its own."""
    decoder: Any = model.sam_mask_decoder
    layers = decoder.output_upscaling
    kinds = (nn.ConvTranspose2d, LayerNorm2d, nn.GELU, nn.ConvTranspose2d, nn.GELU)
    if [type(layer) for layer in layers] != list(kinds) or any(map(_unsupported, layers)):
        return
    grow, norm, gelu, grow_again, _ = layers
    if grow.weight.device.type != "cpu":
        return
    decoder.output_upscaling = nn.Sequential(Upscale(grow), ImageNorm(norm), gelu, Upscale(grow_again), GeluPlanes())


def _unsupported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.GELU):
        return layer.approximate != "none"
    if not isinstance(layer, nn.ConvTranspose2d):
        return False
    stride = layer.stride[0]
    usual = (layer.padding, layer.output_padding, layer.dilation, layer.groups) == ((0, 0), (0, 0), (1, 1), 1)
    return not usual or layer.kernel_size != (stride, stride) or layer.stride != (stride, stride)
