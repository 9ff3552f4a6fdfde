"""Linear layers and convolutions on int8: codes in, one kernel per layer.

A layer computes ``act((x - zx) (w - zw)^T sx sw + bias) + residual`` with the integer codes that the fake-quantized
layer has; the sum of products is exact, and what is folded into it (GELU, a residual, rounding to the next layer's
codes) is computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import UnsupportedLayerError
from ...native import code_offset, load_kernels, why_no_kernels
from ...native.cuda import decodable
from ..inputs import ActivationQuantizer
from ..integer_products import why_no_integer_products, why_too_large
from ..packed import PackedIntxTensor
from .casts import readable
from .codes import NO_GRID, CodeGrid
from .machine import OfThisMachine

_KERNEL_BITS = (2, 3, 4, 8)


class Int8Linear(OfThisMachine):
    """A linear layer or convolution on codes, its weight in the kernels' layout at its own bits.

    Attributes:
        weight: The packed codes, uint8; int8 of 8 bits on GPUs.
        table: What each code stands for, int8 ``[16]``.
        alpha: Step of a sum of products, float32 ``[out]``: the input's scale times the weight's.
        beta: Bias less what the zero point of the input adds, float32 ``[out]``.
        activation: "none", "gelu" or "relu".
        grid: The codes that come out; None for ``dtype``.
    """

    weight: Tensor
    table: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, module: nn.Module, packed: PackedIntxTensor, grid: CodeGrid, dtype: torch.dtype) -> None:
        super().__init__()
        codes, bits = packed.unpack(), int(packed.bits)
        zero_point, step = weight_centre(packed)
        bias = module.bias
        if isinstance(module, nn.Conv2d):
            codes = codes.permute(0, 2, 3, 1)  # channels last, as the patches are gathered
        codes = codes.flatten(1)
        # Patches are padded with the input's zero point, so that the weights there, whatever they are, add nothing.
        if codes.shape[1] % 4:
            codes = nn.functional.pad(codes, (0, -codes.shape[1] % 4))
        # The kernels take 8-bit codes as int8 around 128; fewer bits go through the table.
        middle = 128 if bits == 8 else int(zero_point * step)
        if bits == 8 and zero_point != middle:
            codes = codes + (middle - int(zero_point))
        scale = (packed.scale.float() / step).expand(packed.shape[0])
        table = torch.arange(16, device=codes.device) * step - middle
        self.register_buffer("table", table.clamp(-128, 127).to(torch.int8))
        if codes.is_cuda and bits < 8:
            codes, bits = decodable(codes, bits, self.table)
            step, middle = (1, 128) if bits == 8 else (step, middle)
        weight, sums = torch.ops.qsam2.pack_weight(codes.contiguous(), bits)
        self.register_buffer("weight", weight)
        sums = sums * step - codes.shape[1] * middle
        self.register_buffer("alpha", scale * grid.scale)
        bias = bias.detach().float() if isinstance(bias, Tensor) else torch.zeros((), device=codes.device)
        shift = grid.zero_point - code_offset(codes.device)
        self.register_buffer("beta", bias - shift * self.alpha * sums.float())
        self.sums_over = codes.shape[1]
        self.bits, self.out_features, self.in_features = bits, packed.shape[0], packed.shape[1]
        self.dtype = dtype
        self.activation = "none"
        self.grid: CodeGrid | None = None
        self.input_grid = grid

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Codes ``[..., in]``, and what is added after the activation -> ``[..., out]``."""
        fused = residual if residual is not None and residual.shape == (*x.shape[:-1], self.out_features) else None
        codes = self.grid if fused is residual else None
        out = torch.ops.qsam2.linear(
            x.contiguous(),
            self.weight,
            self.bits,
            self.table,
            self.alpha,
            self.beta,
            fused,
            self.activation,
            torch.uint8 if codes else self.dtype,
            *(codes.arguments if codes else NO_GRID),
        )
        if fused is residual:
            return out
        out = out + residual  # of another shape, which the kernel has not
        return torch.ops.qsam2.quantize(readable(out), *self.grid.arguments) if self.grid else out

    def keep_eight_bits(self) -> None:
        """Decode the weight in memory, once; on a GPU."""
        from ...native.triton_linear import as_eight_bits  # where there is Triton

        if self.bits < 8:
            self.weight = as_eight_bits(self.weight, self.bits, self.table, self.sums_over)
            self.bits = 8

    def extra_repr(self) -> str:
        """Size, bits, and what is folded in."""
        sizes = f"{self.in_features}, {self.out_features}, bits={self.bits}"
        return f"{sizes}, {self.activation}, to {self.grid or self.dtype}"


class Int8Conv2d(Int8Linear):
    """A convolution as a linear layer on patches: codes ``[B, C, H, W]`` -> ``[B, out, H', W']``, channels last."""

    def __init__(self, module: nn.Conv2d, packed: PackedIntxTensor, grid: CodeGrid, dtype: torch.dtype) -> None:
        super().__init__(module, packed, grid, dtype)
        self.kernel, self.stride, self.padding = module.kernel_size, module.stride, module.padding

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve; ``residual`` is added to the result."""
        patches = x.permute(0, 2, 3, 1)
        if self.kernel != (1, 1) or self.stride != (1, 1) or self.padding != (0, 0) or self.in_features % 4:
            fill = int(self.input_grid.zero_point)
            patches = torch.ops.qsam2.patches(patches, *self.kernel, *self.stride, *self.padding, fill)
        kept = None if residual is None else residual.permute(0, 2, 3, 1)
        return super().forward(patches, kept).permute(0, 3, 1, 2)


def why_not_int8(
    module: nn.Module,
    packed: PackedIntxTensor,
    device: torch.device | str | None = None,
    quantizer: ActivationQuantizer | None = None,
) -> str | None:
    """Why the int8 kernels cannot run a layer.

    Args:
        module: The float layer.
        packed: Its weight.
        device: Where the layer will run; by default where ``packed`` is.
        quantizer: Of its input; None if that stays float.

    Returns:
        None if they can, else the reason as a sentence for the coverage report.
    """
    target = torch.device(device) if device is not None else packed.device
    reason = why_no_kernels(target) or why_no_integer_products(module, packed, quantizer, "the int8 kernels")
    if reason is not None:
        return reason
    if packed.bits not in _KERNEL_BITS:
        return f"The int8 kernels have weights of {', '.join(map(str, _KERNEL_BITS))} bits, not {packed.bits}."
    assert quantizer is not None  # by why_no_integer_products
    try:
        zero_point, step = weight_centre(packed)
    except UnsupportedLayerError as error:
        return str(error)
    largest = _largest_sum(packed, zero_point, step, CodeGrid.of(quantizer), target)
    if (reason := why_too_large(packed, largest)) is not None:
        return reason
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
            return "The int8 kernels have no grouped, dilated or wrapped convolutions."
        if isinstance(module.padding, str):
            return f"The int8 kernels take padding in pixels, not {module.padding!r}."
        padded = any(module.padding) or packed.shape[1:].numel() % 4
        if padded and not 0 <= CodeGrid.of(quantizer).zero_point <= 255:
            return "The int8 kernels pad with the code of zero, and this input's grid has none."
    elif packed.shape[1] % 4:
        return f"The int8 kernels need in_features divisible by 4, not {packed.shape[1]}."
    return None


def lower_int8(
    module: nn.Module, packed: PackedIntxTensor, quantizer: ActivationQuantizer, dtype: torch.dtype = torch.bfloat16
) -> Int8Linear:
    """Build the int8 layer of a packed one, which takes the codes of ``quantizer``.

    Args:
        module: The float layer, for its bias and geometry.
        packed: Its weight, on the device that will run it.
        quantizer: Of its input.
        dtype: What comes out, bfloat16 or float32.

    Returns:
        The layer.

    Raises:
        UnsupportedLayerError: The kernels cannot run it; the message is the reason of :func:`why_not_int8`.

    Example:
        >>> quantizer = ActivationQuantizer(0, 255, scale=0.02, zero_point=128.0)
        >>> layer = lower_int8(linear, packed, quantizer)
        >>> layer(QuantizeCodes(CodeGrid.of(quantizer))(inputs)).shape
        torch.Size([16, 4])
    """
    reason = why_not_int8(module, packed, None, quantizer)
    if reason is not None:
        raise UnsupportedLayerError(f"cannot lower this layer to int8: {reason}")
    return build_int8(module, packed, quantizer, dtype)


def build_int8(
    module: nn.Module, packed: PackedIntxTensor, quantizer: ActivationQuantizer, dtype: torch.dtype = torch.bfloat16
) -> Int8Linear:
    """:func:`lower_int8` of a layer that :func:`why_not_int8` has nothing against."""
    load_kernels(packed.device)
    kind = Int8Conv2d if isinstance(module, nn.Conv2d) else Int8Linear
    return kind(module, packed, CodeGrid.of(quantizer), dtype)  # type: ignore[arg-type]


def use_int8_weights(model: nn.Module) -> nn.Module:
    """Keep the weights of a model on a GPU as int8 in memory, in place: as fast as W8A8, in the memory of W8A8.

    Packed weights are decoded anew for every block of rows that they are multiplied with. The results are the same.

    Args:
        model: A model from ``load_qsam2(..., device="cuda", target="int8")``.

    Returns:
        The model.

    Raises:
        UnsupportedLayerError: It has no layers on the GPU's kernels.

    Example:
        >>> model = use_int8_weights(load_qsam2("w4a8.safetensors", device="cuda", target="int8"))  # doctest: +SKIP
    """
    found = [module for module in model.modules() if isinstance(module, Int8Linear)]
    if not found or found[0].weight.device.type != "cuda":
        where = f"run on {found[0].weight.device}" if found else "are not lowered to the int8 kernels"
        raise UnsupportedLayerError(
            f'the layers of this model {where}: load the file with device="cuda", target="int8" to keep its weights '
            "as int8 in the memory of a GPU"
        )
    for module in found:
        module.keep_eight_bits()
    return model


def _largest_sum(packed: PackedIntxTensor, zero_point: float, step: int, grid: CodeGrid, device: torch.device) -> int:
    """What the sum of an output's products can reach, whatever the codes of the input are."""
    inputs = packed.shape.numel() // packed.shape[0]
    padding = -inputs % 4
    if device.type == "cuda":  # codes less 128, and weights moved to the top of a byte
        return 128 * 128 * (inputs + padding)
    farthest = int(max(zero_point, 2**packed.bits - 1 - zero_point) * step)
    bound = grid.high * farthest * (inputs + padding)
    if bound < 2**31:
        return bound
    values = ((packed.unpack().flatten(1).double() - zero_point) * step).abs().sum(1)
    return int(grid.high * (values.max() + padding * farthest))


def weight_centre(packed: PackedIntxTensor) -> tuple[float, int]:
    """The one zero point of a weight, and 2 if it lies between two codes (values are doubled then), else 1."""
    zero_point = float(packed.zero_point.flatten()[0])
    if not bool((packed.zero_point == zero_point).all()):
        raise UnsupportedLayerError("The int8 kernels need one zero point for all output channels.")
    step = 1 if zero_point.is_integer() else 2
    highest = 2**packed.bits - 1 if packed.bits < 8 else int(packed.unpack().max())
    low, high = -zero_point * step, (highest - zero_point) * step
    if not low.is_integer() or low < -128 or high > 127 or (packed.bits == 8 and step == 2):
        raise UnsupportedLayerError(
            f"The int8 kernels have no {packed.bits}-bit weights with the zero point {zero_point}."
        )
    return zero_point, step
